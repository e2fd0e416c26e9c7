//! stub
pub mod attention;
pub mod matmul;
pub mod norm;
pub mod quantise;
pub mod rope;
