// One warp's weights: its steps are first_step, then every K_WARPS-th. Each lane copies its 16 bytes of every 512.
struct Stream {
    const u8* from[STREAMS];  // where this lane copies from next
    u32 ring;                 // offset in shared memory
    u32 byte;                 // of this lane in 512
    u32 units, next, end, slot;

    DEVICE void open(const Params& p, const Job& job) {
        units = p.units;
        byte = keep(lane() * 16);
        next = first_step(job);
        end = job.empty ? 0 : job.steps;
#pragma unroll
        for (u32 m = 0; m < STREAMS; m++) from[m] = start_of_stream(p, job, m) + static_cast<u64>(next) * STEP_BYTES + byte;
        ring = keep(warp() * (STAGES * STAGE_BYTES));
        slot = 0;
#pragma unroll
        for (u32 i = 0; i + 1 < STAGES; i++) copy();
    }

    // Starts copying the next step into the next slot; an empty group after the last.
    DEVICE void copy() {
        if (next < end) {
            const u32 bytes = bytes_of_step(units, next), to = ring + slot * STAGE_BYTES + byte;
#pragma unroll
            for (u32 at = 0; at < STEP_BYTES; at += 512) {
                if (at + byte < bytes) {
#pragma unroll
                    for (u32 m = 0; m < STREAMS; m++) copy_async_16(shared<u8>() + (to + m * STEP_BYTES + at), from[m] + at);
                }
            }
#pragma unroll
            for (u32 m = 0; m < STREAMS; m++) from[m] += K_WARPS * STEP_BYTES;
            next += K_WARPS;
        }
        copy_async_commit();
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }

    // The oldest step has come; its slot is the one after the next to fill. Starts another copy.
    DEVICE const u8* take() {
        copy_async_wait<STAGES - 2>();
        sync_warp();
        const u32 oldest = slot + 1 == STAGES ? 0 : slot + 1;
        copy();
        return shared<u8>() + (ring + oldest * STAGE_BYTES);
    }
};
