// Which rows a thread block multiplies, and where their results go.
<% if routed %>
// Routed rows of one expert: an item of the router's (gpu/experts.rs), by the place along x. There may be none.
DEVICE void choose_rows(const ARGUMENTS Params& p, LOCAL Job& job) {
    const U2 item = reinterpret_cast<const GLOBAL U2*>(p.routes + p.items)[block_x()];
    job.order = reinterpret_cast<const GLOBAL u32*>(p.routes + p.order) + item.x;
    job.expert = item.y >> 16;
    job.live = item.y & 0xffff;
    job.first_row = 0;
}
// The row of activations that row i reads; those beyond the last repeat it.
DEVICE u32 act_row(const ARGUMENTS Params& p, const LOCAL Job& job, u32 i) { return job.order[min_(i, job.live - 1)] / p.share; }
DEVICE u32 out_row(const LOCAL Job& job, u32 i) { return job.order[i]; }
// The matrix, of those that are stacked in a part.
DEVICE u32 matrix_of(const LOCAL Job& job) { return job.expert; }
// Matrices before that of part `which`, from where the part's weights begin.
DEVICE u64 matrices_before(const ARGUMENTS Params& p, const LOCAL Job& job, u32 which) { return job.expert * p.joined + which * (p.joined - 1); }
<% else %>
// Neighbours.
DEVICE void choose_rows(const ARGUMENTS Params& p, LOCAL Job& job) {
    job.first_row = block_x() * STAMP;
    job.live = min_(static_cast<u32>(p.rows) - job.first_row, STAMP);
}
// The row of activations that row i reads; those beyond the last repeat it.
DEVICE u32 act_row(const ARGUMENTS Params& p, const LOCAL Job& job, u32 i) { return min_(job.first_row + i, p.rows - 1); }
DEVICE u32 out_row(const LOCAL Job& job, u32 i) { return job.first_row + i; }
DEVICE u32 matrix_of(const LOCAL Job&) { return 0; }
DEVICE u64 matrices_before(const ARGUMENTS Params&, const LOCAL Job&, u32) { return 0; }
<% endif %>
