//! Plan to executable code, one backend per module. A backend sees launches with every address and share decided; it
//! knows no graph and no model.

pub mod cpu;
pub mod cuda;
