// Reads `words` once, 16 bytes a thread and round, neighbours side by side. The sum is written where it cannot be told from
// others, so that no read can be left out.
#include <metal_stdlib>
using namespace metal;

kernel void read_rate(
    const device uint4* words [[buffer(0)]],
    device uint* out [[buffer(1)]],
    constant uint& rounds [[buffer(2)]],
    uint at [[thread_position_in_grid]],
    uint threads [[threads_per_grid]])
{
    uint4 sum = words[at];
    for (uint i = 1; i < rounds; i++) {
        sum += words[ulong(i) * threads + at];
    }
    out[at & 63] = sum.x ^ sum.y ^ sum.z ^ sum.w;
}
