//! The two string types of the model.

use std::borrow::Cow;
use std::sync::Arc;

/// A string constant, or a string decoded from a record.
pub type Text = Cow<'static, str>;

/// A string that thousands of objects and records share: names, labels, kernel functions, devices.
pub type Str = Arc<str>;
