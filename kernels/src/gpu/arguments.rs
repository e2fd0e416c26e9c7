//! Declares a kernel's arguments once: a struct with a field for each, in the order of the template's `Params`.

/// `arguments! { /// doc  pub struct NormArgs { /// doc  x, ... } }` makes a struct of fields of one type `A`, the names
/// of the fields, and the list of their values.
macro_rules! arguments {
    ($(#[$doc:meta])* pub struct $name:ident { $($(#[$field_doc:meta])* $field:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<A> {
            $($(#[$field_doc])* pub $field: A,)+
        }

        impl $name<()> {
            /// Names of the arguments in order.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($field)),+];
        }

        impl<A> $name<A> {
            /// The arguments in the order in which the kernel takes them.
            pub fn list(self) -> Vec<A> {
                vec![$(self.$field),+]
            }
        }
    };
}
