//! What can be said of CUDA without a GPU; with one, memory and order.

#[cfg(target_os = "linux")]
mod stand_in;

use super::*;

/// The first GPU, if this machine has one that a bundle could run on.
fn open() -> Option<Cuda> {
    match detect() {
        Ok(gpus) if gpus[0].cuda >= OLDEST_CUDA => Some(Cuda::open(0).expect("opens")),
        _ => {
            let error = Cuda::open(0).err().expect("no usable driver");
            assert!(error.to_string().contains("driver"), "{error}");
            None
        }
    }
}

#[test]
fn memory_is_written_zeroed_and_read_in_order() {
    let Some(mut cuda) = open() else { return };
    let mut buffer = cuda.allocate("test", 40 << 20).expect("room");
    let bytes: Vec<u8> = (0..40 << 20).map(|i: u32| (i % 249) as u8).collect();
    let mut back = vec![0; bytes.len()];
    cuda.write(&mut buffer, 0, &bytes).expect("writes");
    cuda.zero(&mut buffer, 5, 7).expect("zeroes");
    cuda.write(&mut buffer, 8, &[1, 2]).expect("writes");
    cuda.read(&buffer, 0, &mut back).expect("reads");
    assert_eq!(back[5..12], [0, 0, 0, 1, 2, 0, 0]);
    assert!(back[12..] == bytes[12..]);
    let error = cuda.write(&mut buffer, (40 << 20) - 1, &[1, 2]);
    assert!(error.is_err());
    let error = cuda.allocate("KV pool", 1 << 50).expect_err("too large");
    assert_eq!(error.exit_code(), 5);
    assert!(error.to_string().contains("KV pool"), "{error}");
}

#[test]
fn foreign_code_and_absent_kernels_are_errors() {
    let memory = DeviceMemory {
        what: "arena".into(),
        address: 4096,
        bytes: 100,
    };
    assert_eq!(memory.range(36, 64).expect("inside"), 4132);
    assert!(memory.range(37, 64).is_err());
    assert!(memory.range(u64::MAX, 2).is_err());
    let Some(mut cuda) = open() else { return };
    let image = KernelImage {
        name: "nothing",
        code: b"no cubin",
        source: b"",
        threads: 32,
        shared_bytes: 0,
    };
    let error = cuda.load_kernels(&[image]).expect_err("no cubin");
    assert!(error.to_string().contains("nothing"), "{error}");
    let launch = BoundLaunch {
        label: "output".into(),
        kernel: 3,
        grid: [1, 1, 1],
        threads: 32,
        shared_bytes: 0,
        args: Vec::new(),
        overlaps: false,
    };
    let error = cuda.prepare(vec![launch]).expect_err("no kernel");
    assert!(error.to_string().contains("output"), "{error}");
}
