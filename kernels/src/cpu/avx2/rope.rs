//! stub
use crate::cpu::symbols::Named;
/// stub
pub const SYMBOLS: &[Named] = &[];
