//! From a bundle's text to kernels this GPU runs. The system turns text into its intermediate form (and remembers that on
//! its own, for as long as it likes); machine code made of it is kept in an archive of ours, see `archive`.

use super::MetalInfo;
use super::archive::Archive;
use crate::device::accelerator::KernelImage;
use crate::error::Error;
use objc2::AllocAnyThread;
use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2_foundation::{NSArray, NSError, NSProcessInfo, NSString, NSURL};
use objc2_metal::{
    MTLBinaryArchive, MTLBinaryArchiveDescriptor, MTLCompileOptions, MTLComputePipelineDescriptor,
    MTLComputePipelineState, MTLDevice, MTLLibrary, MTLPipelineOption,
};
use std::path::Path;

type Device = ProtocolObject<dyn MTLDevice>;
type Pipeline = Retained<ProtocolObject<dyn MTLComputePipelineState>>;
type Machine = Retained<ProtocolObject<dyn MTLBinaryArchive>>;

/// Lanes of a simdgroup that kernels count on.
const LANES: usize = 32;

/// A kernel, compiled for this GPU.
pub(super) struct Kernel {
    pub(super) name: String,
    pub(super) pipeline: Pipeline,
}

/// An error of the framework, in its words.
fn words(error: &NSError) -> String {
    error.localizedDescription().to_string()
}

fn failed(image: &KernelImage<'_>, why: impl std::fmt::Display) -> Error {
    Error::Device(format!("loading kernel {}: {why}", image.name))
}

/// All of `images`, in their order.
pub(super) fn load(
    device: &Device,
    info: &MetalInfo,
    images: &[KernelImage<'_>],
) -> Result<Vec<Kernel>, Error> {
    let mut kernels = Vec::with_capacity(images.len());
    // Kernels of one library follow each other.
    for images in images.chunk_by(|a, b| a.code == b.code) {
        let text = std::str::from_utf8(images[0].code);
        let text = text.map_err(|_| failed(&images[0], "its source is no text"))?;
        let library = compile(device, text)?;
        let mut wanted = Vec::with_capacity(images.len());
        for image in images {
            let function = library.newFunctionWithName(&NSString::from_str(image.name));
            let function = function.ok_or_else(|| failed(image, "it is not in its library"))?;
            let descriptor = MTLComputePipelineDescriptor::new();
            descriptor.setLabel(Some(&NSString::from_str(image.name)));
            descriptor.setComputeFunction(Some(&function));
            wanted.push(descriptor);
        }
        let system = NSProcessInfo::processInfo().operatingSystemVersionString();
        let folder = crate::cache::home().join("metal");
        let kept = Archive::new(&folder, images[0].code, &system.to_string(), &info.name);
        let pipelines = match from_archive(device, &kept, &wanted) {
            Some(pipelines) => pipelines,
            None => compiled(device, &kept, &wanted, images)?,
        };
        for (image, pipeline) in images.iter().zip(pipelines) {
            check(device, info, image, &pipeline)?;
            kernels.push(Kernel {
                name: image.name.to_owned(),
                pipeline,
            });
        }
    }
    Ok(kernels)
}

impl Kernel {
    /// Most threads of a threadgroup.
    pub(super) fn most_threads(&self) -> usize {
        self.pipeline.maxTotalThreadsPerThreadgroup()
    }
}

/// Kernel `name` of a text of the runtime's own.
pub(super) fn single(device: &Device, text: &str, name: &str) -> Result<Kernel, Error> {
    let why = |why: &str| Error::Device(format!("loading kernel {name}: {why}"));
    let function = compile(device, text)?.newFunctionWithName(&NSString::from_str(name));
    let function = function.ok_or_else(|| why("it is not in its library"))?;
    let pipeline = device.newComputePipelineStateWithFunction_error(&function);
    Ok(Kernel {
        name: name.to_owned(),
        pipeline: pipeline.map_err(|e| why(&words(&e)))?,
    })
}

/// The library of a text.
fn compile(device: &Device, text: &str) -> Result<Retained<ProtocolObject<dyn MTLLibrary>>, Error> {
    let options = MTLCompileOptions::new();
    // Also said in the source, for systems that know that.
    #[expect(deprecated, reason = "what replaces it begins with macOS 15")]
    options.setFastMathEnabled(false);
    let library =
        device.newLibraryWithSource_options_error(&NSString::from_str(text), Some(&options));
    library.map_err(|e| Error::Device(format!("compiling kernels: {}", words(&e))))
}

/// All pipelines out of the archive; none if one is not in it.
fn from_archive(
    device: &Device,
    kept: &Archive,
    wanted: &[Retained<MTLComputePipelineDescriptor>],
) -> Option<Vec<Pipeline>> {
    let archive = archive(device, Some(kept.read()?)).ok()?;
    let pipelines = wanted.iter().map(|descriptor| {
        use_archive(descriptor, Some(&archive));
        let only = MTLPipelineOption::FailOnBinaryArchiveMiss;
        let made = device
            .newComputePipelineStateWithDescriptor_options_reflection_error(descriptor, only, None);
        made.ok()
    });
    pipelines.collect()
}

/// All pipelines, compiled here and kept for the next time.
fn compiled(
    device: &Device,
    kept: &Archive,
    wanted: &[Retained<MTLComputePipelineDescriptor>],
    images: &[KernelImage<'_>],
) -> Result<Vec<Pipeline>, Error> {
    let archive = archive(device, None).ok().filter(|archive| {
        let add = |d: &Retained<_>| archive.addComputePipelineFunctionsWithDescriptor_error(d);
        wanted.iter().all(|descriptor| add(descriptor).is_ok())
    });
    let pipelines = wanted.iter().zip(images).map(|(descriptor, image)| {
        use_archive(descriptor, archive.as_ref());
        let made = device.newComputePipelineStateWithDescriptor_options_reflection_error(
            descriptor,
            MTLPipelineOption::None,
            None,
        );
        made.map_err(|e| failed(image, words(&e)))
    });
    let pipelines = pipelines.collect::<Result<_, _>>()?;
    if let Some(archive) = archive {
        let write = |file: &Path| {
            let url = url(file).ok_or("its path is no text")?;
            archive.serializeToURL_error(&url).map_err(|e| words(&e))
        };
        // What cannot be kept is compiled again next time.
        let _ = kept.replace(write);
    }
    Ok(pipelines)
}

/// The archive in `file`, or an empty one.
fn archive(device: &Device, file: Option<&Path>) -> Result<Machine, String> {
    let descriptor = MTLBinaryArchiveDescriptor::new();
    if let Some(file) = file {
        let url = url(file).ok_or("its path is no text")?;
        descriptor.setUrl(Some(&url));
    }
    let made = device.newBinaryArchiveWithDescriptor_error(&descriptor);
    made.map_err(|e| words(&e))
}

fn url(file: &Path) -> Option<Retained<NSURL>> {
    let path = NSString::from_str(file.to_str()?);
    Some(NSURL::initFileURLWithPath(NSURL::alloc(), &path))
}

fn use_archive(descriptor: &MTLComputePipelineDescriptor, archive: Option<&Machine>) {
    let archives = archive.map(|archive| NSArray::from_slice(&[&**archive]));
    descriptor.setBinaryArchives(archives.as_deref());
}

/// What launches of a kernel count on.
fn check(
    device: &Device,
    info: &MetalInfo,
    image: &KernelImage<'_>,
    pipeline: &Pipeline,
) -> Result<(), Error> {
    let (threads, lanes) = (
        pipeline.maxTotalThreadsPerThreadgroup(),
        pipeline.threadExecutionWidth(),
    );
    let name = &info.name;
    if lanes != LANES || threads < image.threads as usize {
        return Err(failed(
            image,
            format!(
                "it needs {} threads in simdgroups of {LANES}, {name} gives it {threads} in simdgroups of {lanes}",
                image.threads
            ),
        ));
    }
    let most = device.maxThreadgroupMemoryLength();
    if image.shared_bytes as usize > most {
        return Err(failed(
            image,
            format!(
                "it needs {} bytes of threadgroup memory, {name} has {most}",
                image.shared_bytes
            ),
        ));
    }
    Ok(())
}
