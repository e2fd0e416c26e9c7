// One warp's weights: its steps are first_step, then every K_WARPS-th. A stream's step is one bulk copy, which the first
// lane starts; a slot's barrier waits for the bytes of all streams. Every step that is copied is taken.
struct Stream {
    const u8* from[STREAMS];  // of the next step
    u32 ring, barriers;       // offsets in shared memory
    u32 units, next, end, slot;
    u32 parity;  // of the oldest slot's barrier

    DEVICE u64* barrier(u32 of) const { return reinterpret_cast<u64*>(shared<u8>() + (barriers + of * 8)); }

    DEVICE void open(const Params& p, const Job& job) {
        units = p.units;
        next = first_step(job);
        end = job.empty ? 0 : job.steps;
#pragma unroll
        for (u32 m = 0; m < STREAMS; m++) from[m] = start_of_stream(p, job, m) + static_cast<u64>(next) * STEP_BYTES;
        ring = keep(warp() * (STAGES * STAGE_BYTES));
        barriers = keep(BARRIERS_START + warp() * (STAGES * 8));
        slot = parity = 0;
        if (lane() == 0) {
#pragma unroll
            for (u32 i = 0; i < STAGES; i++) barrier_init(barrier(i), 1);
        }
        sync_warp();
#pragma unroll
        for (u32 i = 0; i + 1 < STAGES; i++) copy();
    }

    // Starts copying the next step into the next slot, if there is one.
    DEVICE void copy() {
        if (next < end) {
            if (lane() == 0) {
                const u32 bytes = bytes_of_step(units, next);
                barrier_expect(barrier(slot), STREAMS * bytes);
#pragma unroll
                for (u32 m = 0; m < STREAMS; m++)
                    copy_bulk(shared<u8>() + (ring + slot * STAGE_BYTES + m * STEP_BYTES), from[m], bytes, barrier(slot));
            }
#pragma unroll
            for (u32 m = 0; m < STREAMS; m++) from[m] += K_WARPS * STEP_BYTES;
            next += K_WARPS;
        }
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }

    // The oldest step has come; its slot is the one after the next to fill. Starts another copy: all lanes have read the step
    // before and met at a barrier since.
    DEVICE const u8* take() {
        const u32 oldest = slot + 1 == STAGES ? 0 : slot + 1;
        barrier_wait(barrier(oldest), parity);
        if (oldest == STAGES - 1) parity ^= 1;
        copy();
        return shared<u8>() + (ring + oldest * STAGE_BYTES);
    }
};
