//! The codebooks of 4-bit formats: what each code stands for. Which format uses which is in the format's file.

use serde::{Deserialize, Serialize};

/// 16 small integers that 4-bit codes stand for, before the scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Codebook {
    /// The non-linear levels of IQ4_NL and IQ4_XS: finer around zero.
    Nl4,
    /// E2M1 floats times two, so that all are integers: sign, two bits of exponent, one of mantissa.
    Fp4,
}

impl Codebook {
    /// Value of each code (ggml's `kvalues_iq4nl` and `kvalues_fp4`).
    pub const fn values(self) -> [i8; 16] {
        match self {
            Codebook::Nl4 => [
                -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
            ],
            Codebook::Fp4 => [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12],
        }
    }

    /// The largest magnitude of a value.
    pub const fn largest(self) -> u16 {
        let (values, mut largest, mut i) = (self.values(), 0, 0);
        while i < values.len() {
            let magnitude = values[i].unsigned_abs() as u16;
            if magnitude > largest {
                largest = magnitude;
            }
            i += 1;
        }
        largest
    }

    /// What a layout's name calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Codebook::Nl4 => "nl4",
            Codebook::Fp4 => "fp4",
        }
    }
}
