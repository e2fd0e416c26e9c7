// The process that tests talk to: commands on standard input, answers on standard output, messages on standard error.
// Numbers are in native order. See tests/simt.rs, the other side.
//   A bytes:u64                      a buffer, numbered from 0
//   F buffer:u64                     frees it
//   M buffer:u64                     launches write it: see Results in runtime.hpp
//   W buffer offset bytes:u64, data  writes
//   R buffer offset bytes:u64        answers with the data
//   L name_bytes:u32, name, grid:u32[3], shared_bytes:u32, seed:u64, args:u32, {address:u8, value or buffer:u64, offset:u64}
//                                    runs a kernel, then answers with one byte, 1 if it ran dependency_wait
#include "runtime.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

extern "C" const char* __asan_default_options() {
    return "detect_leaks=0:detect_stack_use_after_return=0:quarantine_size_mb=16:allocator_may_return_null=1";
}
extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1"; }

namespace {

struct Buffer {
    u8* data;
    u64 bytes;
};
std::vector<Buffer> buffers;

void get(void* to, size_t bytes) {
    if (bytes && fread(to, 1, bytes, stdin) != bytes) simt::fail("a command ends early");
}

template <typename T>
T number() {
    T v;
    get(&v, sizeof v);
    return v;
}

Buffer& buffer(u64 index) {
    if (index >= buffers.size() || !buffers[index].data) simt::fail("buffer %llu does not exist", index);
    return buffers[index];
}

// The bytes a command names.
u8* range(u64& bytes) {
    Buffer& b = buffer(number<u64>());
    const u64 offset = number<u64>();
    bytes = number<u64>();
    if (offset > b.bytes || bytes > b.bytes - offset)
        simt::fail("bytes %llu..+%llu of a buffer of %llu", offset, bytes, b.bytes);
    return b.data + offset;
}

void answer(const void* data, size_t bytes) {
    if (fwrite(data, 1, bytes, stdout) != bytes || fflush(stdout) != 0) exit(0);
}

void run_kernel() {
    std::string name(number<u32>(), 0);
    get(name.data(), name.size());
    simt::Launch launch;
    launch.kernel = simt::find_kernel(name.c_str());
    if (!launch.kernel) simt::fail("no kernel %s", name.c_str());
    for (u32& g : launch.grid) g = number<u32>();
    launch.shared_bytes = number<u32>();
    launch.seed = number<u64>();
    const u32 args = number<u32>();
    // Exactly as long as the arguments, so that reading beyond them is found.
    u64* params = static_cast<u64*>(malloc(args * 8));
    for (u32 i = 0; i < args; i++) {
        const bool address = number<u8>();
        const u64 value = number<u64>(), offset = number<u64>();
        params[i] = address ? reinterpret_cast<u64>(buffer(value).data) + offset : value;
    }
    if (launch.kernel->params_bytes != args * 8)
        simt::fail("kernel %s takes %u bytes of parameters, the launch gives %u", name.c_str(), launch.kernel->params_bytes, args * 8);
    launch.params = params;
    const u8 waited = simt::launch(launch);
    free(params);
    answer(&waited, 1);
}

}  // namespace

int main() {
    static char input[1 << 20];
    setvbuf(stdin, input, _IOFBF, sizeof input);
    for (int command; (command = getchar()) != EOF;) {
        u64 bytes;
        switch (command) {
            case 'A': {
                bytes = number<u64>();
                void* data = nullptr;
                if (posix_memalign(&data, 256, bytes)) simt::fail("no memory for a buffer of %llu bytes", bytes);
                memset(data, 0xff, bytes);
                buffers.push_back({static_cast<u8*>(data), bytes});
                break;
            }
            case 'F': {
                Buffer& b = buffer(number<u64>());
                for (simt::Results& r : simt::results)
                    if (r.start == reinterpret_cast<u64>(b.data)) r.bytes = 0;
                free(b.data);
                b.data = nullptr;
                break;
            }
            case 'M': {
                const Buffer& b = buffer(number<u64>());
                simt::results.push_back({reinterpret_cast<u64>(b.data), b.bytes});
                break;
            }
            case 'W': {
                u8* to = range(bytes);
                get(to, bytes);
                break;
            }
            case 'R': {
                const u8* from = range(bytes);
                answer(from, bytes);
                break;
            }
            case 'L': run_kernel(); break;
            default: simt::fail("no command %d", command);
        }
    }
    return 0;
}
