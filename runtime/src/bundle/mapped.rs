//! A section as memory of its own: what keeps it mapped, and the whole pages it lies in, for devices that read the host's
//! memory where it is.

use super::Bundle;
use std::ops::Range;
use std::sync::Arc;

/// A section of a bundle that stays mapped as long as this lives.
#[derive(Clone, Debug)]
pub struct MappedSection {
    bundle: Arc<Bundle>,
    range: Range<usize>,
}

impl MappedSection {
    /// Section `index` of `bundle`; `None` if there is no such section.
    pub fn new(bundle: &Arc<Bundle>, index: u32) -> Option<Self> {
        let section = bundle.header.sections.get(index as usize)?;
        let start = section.offset as usize;
        Some(Self {
            bundle: Arc::clone(bundle),
            range: start..start + section.bytes as usize,
        })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bundle.map[self.range.clone()]
    }

    /// Its bytes and those behind it up to a multiple of `page_bytes`, all of them mapped.
    ///
    /// # Errors
    /// In words, if it does not begin such a page or the map ends before the last one does.
    pub fn pages(&self, page_bytes: usize) -> Result<&[u8], String> {
        whole_pages(&self.bundle.map, self.range.clone(), page_bytes)
    }
}

/// The bytes of `map` from `range` on that fill whole pages.
fn whole_pages(map: &[u8], range: Range<usize>, page_bytes: usize) -> Result<&[u8], String> {
    let bytes = map.get(range.clone()).unwrap_or_default();
    if bytes.is_empty() {
        return Err("it has no bytes".into());
    }
    let past = bytes.as_ptr().addr().checked_rem(page_bytes);
    if past != Some(0) {
        let past = past.unwrap_or_default();
        return Err(format!(
            "it begins {past} bytes into a page of {page_bytes}"
        ));
    }
    let whole = bytes.len().checked_next_multiple_of(page_bytes);
    let end = whole.and_then(|whole| range.start.checked_add(whole));
    end.and_then(|end| map.get(range.start..end))
        .ok_or_else(|| format!("the file ends within its last page of {page_bytes} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::sample;
    use crate::bundle::{BundleWriter, SectionKind};

    const PAGE: usize = 4096;

    #[test]
    fn pages_are_inside_the_map_or_refused() {
        // The place in it where a page begins.
        let memory = vec![7; 5 * PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        let map = &memory[start..start + 3 * PAGE];
        let pages = |range| whole_pages(map, range, PAGE).map(<[u8]>::len);
        assert_eq!(pages(0..1), Ok(PAGE));
        assert_eq!(pages(PAGE..2 * PAGE), Ok(PAGE));
        assert_eq!(pages(PAGE..2 * PAGE + 1), Ok(2 * PAGE));
        assert_eq!(pages(0..3 * PAGE), Ok(3 * PAGE));
        let cut = |end: usize, range| whole_pages(&map[..end], range, PAGE).map(<[u8]>::len);
        assert_eq!(cut(3 * PAGE - 1, 0..2 * PAGE), Ok(2 * PAGE));
        for (range, why) in [(64..PAGE, "64 bytes into a page"), (0..0, "no bytes")] {
            let error = pages(range).expect_err("no whole page");
            assert!(error.contains(why), "{error}");
        }
        let error = cut(3 * PAGE - 1, PAGE..2 * PAGE + 1).expect_err("a page is cut");
        assert!(error.contains("ends within"), "{error}");
        assert!(whole_pages(map, 4 * PAGE..5 * PAGE, PAGE).is_err());
        assert!(whole_pages(map, 0..PAGE, 0).is_err());
    }

    #[test]
    fn the_weights_of_a_bundle_fill_whole_pages_that_outlive_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("m.press");
        sample::write(&path, &sample::gpu_manifest()).expect("written");
        let bundle = Arc::new(Bundle::open(&path).expect("opens"));
        assert!(MappedSection::new(&bundle, 99).is_none());
        let weights = MappedSection::new(&bundle, 0).expect("weights");
        drop(bundle);
        assert_eq!(weights.bytes(), sample::WEIGHTS);
        let pages = weights.pages(PAGE).expect("whole pages");
        assert_eq!(pages.len(), PAGE);
        assert_eq!(pages[..sample::WEIGHTS.len()], sample::WEIGHTS);
        // As large as Apple's: every section begins at a multiple of them in the file, and another follows.
        let offset = weights.range.start;
        assert_eq!(offset % 16384, 0);
        assert!(offset + 16384 <= weights.bundle.map.len());
    }

    #[test]
    fn weights_that_end_the_file_within_a_page_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let (usual, path) = (folder.path().join("a.press"), folder.path().join("b.press"));
        sample::write(&usual, &sample::manifest()).expect("written");
        let usual = Bundle::open(&usual).expect("opens");
        let mut manifest = sample::manifest();
        (
            manifest.plans[0].code_section,
            manifest.plans[0].weights_section,
        ) = (1, 2);
        let mut writer = BundleWriter::create(&path).expect("a file");
        writer
            .write_value(SectionKind::Manifest, &manifest)
            .expect("a manifest");
        let code = usual.section_bytes(1).expect("code");
        writer.write_section(SectionKind::Code, code).expect("code");
        writer
            .write_section(SectionKind::Weights, &sample::WEIGHTS)
            .expect("weights");
        let targets = [manifest.plans[0].requires.clone()];
        writer.finish("sample", &targets).expect("written");
        let bundle = Arc::new(Bundle::open(&path).expect("opens"));
        let weights = MappedSection::new(&bundle, 2).expect("weights");
        assert_eq!(weights.bytes(), sample::WEIGHTS);
        let error = weights.pages(PAGE).expect_err("the last section");
        assert!(error.contains("the file ends within"), "{error}");
    }
}
