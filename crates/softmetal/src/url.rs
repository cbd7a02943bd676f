//! `NSURL`: addresses of files, and text of the others.

use std::ffi::{CStr, CString, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use objc2::rc::{Allocated, Retained};
use objc2::{AnyThread, ClassType, DefinedClass, Message, define_class, msg_send};
use objc2_foundation::{NSObject, NSString};

/// What a URL is made of.
pub(crate) struct UrlState {
    /// The path, without escapes.
    path: CString,
    /// What stands before the path; `file://` for files.
    scheme: String,
}

define_class!(
    /// An address.
    #[unsafe(super(NSObject))]
    #[name = "NSURL"]
    #[ivars = UrlState]
    pub(crate) struct Url;

    impl Url {
        #[unsafe(method_id(fileURLWithPath:))]
        fn file(path: &NSString) -> Option<Retained<Self>> {
            Self::of_file(Self::alloc(), path.to_string().as_bytes())
        }

        #[unsafe(method_id(fileURLWithPath:isDirectory:))]
        fn file_or_directory(path: &NSString, _directory: bool) -> Option<Retained<Self>> {
            Self::of_file(Self::alloc(), path.to_string().as_bytes())
        }

        #[unsafe(method_id(initFileURLWithPath:))]
        fn init_file(this: Allocated<Self>, path: &NSString) -> Option<Retained<Self>> {
            Self::of_file(this, path.to_string().as_bytes())
        }

        #[unsafe(method_id(initFileURLWithFileSystemRepresentation:isDirectory:relativeToURL:))]
        fn init_representation(
            this: Allocated<Self>,
            path: *const c_char,
            _directory: bool,
            _base: Option<&Url>,
        ) -> Option<Retained<Self>> {
            // SAFETY: the caller gives a string that ends with NUL.
            Self::of_file(this, unsafe { CStr::from_ptr(path) }.to_bytes())
        }

        #[unsafe(method_id(URLWithString:))]
        fn parse(text: &NSString) -> Option<Retained<Self>> {
            Self::of_text(&text.to_string())
        }

        #[unsafe(method_id(path))]
        fn path(&self) -> Option<Retained<NSString>> {
            Some(NSString::from_str(&self.ivars().path.to_string_lossy()))
        }

        #[unsafe(method_id(absoluteString))]
        fn absolute_string(&self) -> Option<Retained<NSString>> {
            Some(self.text())
        }

        #[unsafe(method_id(lastPathComponent))]
        fn last_component(&self) -> Option<Retained<NSString>> {
            let path = Path::new(OsStr::from_bytes(self.ivars().path.as_bytes()));
            path.file_name().map(|name| NSString::from_str(&name.to_string_lossy()))
        }

        #[unsafe(method(isFileURL))]
        fn is_file(&self) -> bool {
            self.names_file()
        }

        #[unsafe(method(fileSystemRepresentation))]
        fn representation(&self) -> *const c_char {
            self.ivars().path.as_ptr()
        }

        #[unsafe(method(getFileSystemRepresentation:maxLength:))]
        fn get_representation(&self, into: *mut c_char, room: usize) -> bool {
            let bytes = self.ivars().path.as_bytes_with_nul();
            let fits = bytes.len() <= room;
            if fits {
                // SAFETY: the caller has room for so many bytes.
                unsafe { into.copy_from_nonoverlapping(bytes.as_ptr().cast(), bytes.len()) };
            }
            fits
        }

        #[unsafe(method_id(copy))]
        fn copy(&self) -> Retained<Self> {
            self.retain()
        }

        #[unsafe(method_id(description))]
        fn description(&self) -> Option<Retained<NSString>> {
            Some(self.text())
        }
    }
);

impl Url {
    fn over(this: Allocated<Self>, state: UrlState) -> Option<Retained<Self>> {
        let this = this.set_ivars(state);
        // SAFETY: NSObject's init returns the object.
        unsafe { msg_send![super(this), init] }
    }

    /// The address of a file; a relative path is one of the current folder.
    fn of_file(this: Allocated<Self>, path: &[u8]) -> Option<Retained<Self>> {
        let path = std::path::absolute(OsStr::from_bytes(path)).ok()?;
        let path = CString::new(path.as_os_str().as_bytes()).ok()?;
        Self::over(this, UrlState { path, scheme: "file://".to_owned() })
    }

    /// An address from its text.
    fn of_text(text: &str) -> Option<Retained<Self>> {
        let at = text.find("://").map_or(0, |at| at + 3);
        let path = CString::new(decoded(&text[at..])).ok()?;
        Self::over(Self::alloc(), UrlState { path, scheme: text[..at].to_owned() })
    }

    fn text(&self) -> Retained<NSString> {
        let UrlState { path, scheme } = self.ivars();
        NSString::from_str(&format!("{scheme}{}", encoded(path.as_bytes())))
    }

    fn names_file(&self) -> bool {
        self.ivars().scheme == "file://"
    }

    /// The path of a file's address; none for any other.
    pub(crate) fn file_path(&self) -> Option<PathBuf> {
        self.names_file().then(|| PathBuf::from(OsStr::from_bytes(self.ivars().path.as_bytes())))
    }
}

/// A path with escapes for what a URL does not take as it is (RFC 3986, 2.3 and 3.3).
fn encoded(path: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(byte);
    path.iter().map(|b| if plain(b) { char::from(*b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// The bytes that a text with escapes stands for; what is no escape is kept.
fn decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match escape.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                plain.push(byte);
                at += 3;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    plain
}

pub(crate) fn load() {
    let _ = Url::class();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_go_there_and_back() {
        assert_eq!(encoded("/a b/ü%".as_bytes()), "/a%20b/%C3%BC%25");
        assert_eq!(decoded("/a%20b/%C3%BC%25"), "/a b/ü%".as_bytes());
        assert_eq!(decoded("100%"), b"100%");
        assert_eq!(decoded("%zz%4"), b"%zz%4");
    }
}
