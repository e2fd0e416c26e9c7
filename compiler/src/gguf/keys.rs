//! Metadata by key, as the type the caller wants: integers and floats of any width, arrays that may be one value. What
//! the keys mean is for model.rs.

use super::{Array, Error, Gguf, Value};

impl Gguf {
    /// An integer of any type that fits; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no integer, or out of range.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, Error> {
        self.int(key, "u32")
    }

    /// An integer of any type that fits; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no integer, or negative.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, Error> {
        self.int(key, "u64")
    }

    /// A float or integer of any type, rounded to f32; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no number.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, Error> {
        self.read(key, "f32", |value| value.float().map(|v| v as f32))
    }

    /// A bool; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, Error> {
        self.read(key, "bool", |value| match value {
            Value::Bool(v) => Some(*v),
            _ => None,
        })
    }

    /// A string; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no string.
    pub fn str(&self, key: &str) -> Result<Option<&str>, Error> {
        self.read(key, "str", |value| match value {
            Value::Str(v) => Some(v.as_str()),
            _ => None,
        })
    }

    /// An array of integers of any type that fits, or one such integer; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no integer or array of integers, or one is out of range.
    pub fn u32s(&self, key: &str) -> Result<Option<Vec<u32>>, Error> {
        self.ints(key, "arr[u32]")
    }

    /// An array of integers of any type that fits, or one such integer; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no integer or array of integers, or one is out of range.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, Error> {
        self.ints(key, "arr[i32]")
    }

    /// An array of floats or integers rounded to f32, or one such number; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no number or array of numbers.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, Error> {
        self.read(key, "arr[f32]", |value| {
            Some(value.floats()?.into_iter().map(|v| v as f32).collect())
        })
    }

    /// An array of bools, or one bool; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no bool or array of bools.
    pub fn bools(&self, key: &str) -> Result<Option<Vec<bool>>, Error> {
        self.read(key, "arr[bool]", |value| match value {
            Value::Array(Array::Bool(v)) => Some(v.clone()),
            Value::Bool(v) => Some(vec![*v]),
            _ => None,
        })
    }

    /// An array of strings, or one string; `None` when the key is absent.
    ///
    /// # Errors
    /// The value is no string or array of strings.
    pub fn strs(&self, key: &str) -> Result<Option<&[String]>, Error> {
        self.read(key, "arr[str]", |value| match value {
            Value::Array(Array::Str(v)) => Some(v.as_slice()),
            Value::Str(v) => Some(std::slice::from_ref(v)),
            _ => None,
        })
    }

    fn read<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match convert(value) {
            Some(converted) => Ok(Some(converted)),
            None => Err(Error::Type {
                path: self.paths[0].clone(),
                key: key.into(),
                found: value.type_name(),
                expected,
            }),
        }
    }

    fn int<T: TryFrom<i128>>(&self, key: &str, expected: &'static str) -> Result<Option<T>, Error> {
        let Some(int) = self.read(key, expected, Value::int)? else {
            return Ok(None);
        };
        self.fit(key, int, expected).map(Some)
    }

    fn ints<T: TryFrom<i128>>(
        &self,
        key: &str,
        expected: &'static str,
    ) -> Result<Option<Vec<T>>, Error> {
        let Some(ints) = self.read(key, expected, Value::ints)? else {
            return Ok(None);
        };
        let fitted: Result<_, _> = ints
            .into_iter()
            .map(|int| self.fit(key, int, expected))
            .collect();
        fitted.map(Some)
    }

    fn fit<T: TryFrom<i128>>(
        &self,
        key: &str,
        int: i128,
        expected: &'static str,
    ) -> Result<T, Error> {
        T::try_from(int).map_err(|_| {
            Error::metadata(
                &self.paths[0],
                key,
                format!("{int} does not fit {expected}"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::write::GgufWriter;
    use super::super::write::tests::sample;
    use super::*;

    fn open(writer: &GgufWriter) -> Gguf {
        let file = tempfile::NamedTempFile::new().unwrap();
        writer.write(file.path()).unwrap();
        Gguf::open(file.path()).unwrap()
    }

    #[test]
    fn integers_are_read_from_any_type_that_fits() {
        let gguf = open(&sample());
        for (key, expected) in [("u8", 255), ("u16", 65535), ("u32", u32::MAX)] {
            assert_eq!(gguf.u32(key).unwrap(), Some(expected));
            assert_eq!(gguf.u64(key).unwrap(), Some(u64::from(expected)));
        }
        assert_eq!(gguf.u64("u64").unwrap(), Some(u64::MAX));
        for key in ["i8", "i16", "i32", "i64"] {
            assert!(gguf.u32(key).is_err() && gguf.u64(key).is_err(), "{key}");
        }
        assert_eq!(gguf.u32s("u16s").unwrap(), Some(vec![1, 65535]));
        assert_eq!(gguf.u32s("u8").unwrap(), Some(vec![255]));
        assert_eq!(gguf.i32s("i8s").unwrap(), Some(vec![-128, 127]));
        assert!(gguf.u32s("i16s").is_err() && gguf.i32s("u64s").is_err());
    }

    #[test]
    fn floats_bools_and_strings_are_read() {
        let gguf = open(&sample());
        assert_eq!(gguf.f32("f32").unwrap(), Some(f32::MIN_POSITIVE));
        assert_eq!(gguf.f32("f64").unwrap(), Some(f32::INFINITY));
        assert_eq!(gguf.f32("i8").unwrap(), Some(-128.0));
        assert_eq!(gguf.f32s("i32s").unwrap(), Some(vec![i32::MIN as f32, 7.0]));
        assert_eq!(gguf.f32s("f32").unwrap(), Some(vec![f32::MIN_POSITIVE]));
        assert_eq!(gguf.bool("bool").unwrap(), Some(true));
        assert_eq!(gguf.bools("bools").unwrap(), Some(vec![true, false]));
        assert_eq!(gguf.bools("bool").unwrap(), Some(vec![true]));
        assert_eq!(gguf.str("str").unwrap(), Some("größe ▁"));
        assert_eq!(gguf.strs("strs").unwrap().unwrap()[1], "\u{0}a");
        assert_eq!(gguf.strs("str").unwrap().unwrap(), ["größe ▁"]);
    }

    #[test]
    fn absent_keys_are_none_and_wrong_types_are_named() {
        let gguf = open(&sample());
        assert_eq!(gguf.u32("absent").unwrap(), None);
        assert_eq!(gguf.strs("absent").unwrap(), None);
        assert!(gguf.get("absent").is_none() && gguf.tensor("absent").is_none());
        let says = |error: Error| {
            let text = error.to_string();
            text.split_once(".tmp")
                .unwrap()
                .1
                .split_once(": ")
                .unwrap()
                .1
                .to_owned()
        };
        assert_eq!(
            says(gguf.u32("str").unwrap_err()),
            "key str: is str, expected u32"
        );
        assert_eq!(
            says(gguf.u32("u64").unwrap_err()),
            "key u64: 18446744073709551615 does not fit u32"
        );
        assert_eq!(
            says(gguf.strs("nested").unwrap_err()),
            "key nested: is arr[arr], expected arr[str]"
        );
        assert!(gguf.bool("u8").is_err() && gguf.f32("bool").is_err() && gguf.str("u8s").is_err());
        assert!(gguf.bools("u8s").is_err() && gguf.f32s("strs").is_err());
    }
}
