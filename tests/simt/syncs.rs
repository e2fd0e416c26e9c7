//! The barriers and waits of a kernel's text, and the text without one of them: a test should fail on that.

/// Barriers and waits: calls without which threads may see too little, or too much.
const SYNCS: [&str; 9] = [
    "sync_block(",
    "sync_warp(",
    "sync_named(",
    "copy_async_wait<",
    "copy_async_commit(",
    "barrier_wait(",
    "wgmma_wait<",
    "wgmma_commit(",
    "fence_async(",
];

/// Where the barriers and waits of a kernel's text are: start and end of each call, without comments.
fn sync_calls(body: &str) -> Vec<(usize, usize)> {
    let mut calls = vec![];
    let mut start = 0;
    for line in body.split_inclusive('\n') {
        let code = line.split("//").next().expect("one part");
        for (at, _) in code.char_indices() {
            let whole_word = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            if whole_word && SYNCS.iter().any(|s| code[at..].starts_with(s)) {
                let end = code[at..]
                    .find(';')
                    .expect("a call is a statement of one line");
                calls.push((start + at, start + at + end));
            }
        }
        start += line.len();
    }
    calls
}

/// The barriers and waits of a kernel's text, as `sync_block() at line 12`.
pub fn syncs(body: &str) -> Vec<String> {
    let describe = |(start, end): (usize, usize)| {
        let line = body[..start].matches('\n').count() + 1;
        format!("{} at line {line}", &body[start..end])
    };
    sync_calls(body).into_iter().map(describe).collect()
}

/// The text without the i-th of its [`syncs`]: some schedule should make it fail.
pub fn without_sync(body: &str, i: usize) -> String {
    let (start, end) = sync_calls(body)[i];
    format!("{}(void)0{}", &body[..start], &body[end..])
}
