//! Lines that stay apart where the one before could be written in part only, as on a disk that is full.

use std::io::{self, Write};

/// Writes a line with its end. Where only a part of it could be written, the next one begins with the end of that.
///
/// # Errors
/// When not all of it could be written.
pub(crate) fn write_line(out: &mut impl Write, is_torn: &mut bool, line: &[u8]) -> io::Result<()> {
    let whole = [if *is_torn { &b"\n"[..] } else { b"" }, line].concat();
    let mut rest = &whole[..];
    while !rest.is_empty() {
        match out.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                *is_torn = rest[written - 1] != b'\n';
                rest = &rest[written..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::{errno::Errno, libc};

    use super::*;

    #[test]
    fn a_line_that_was_torn_is_not_continued() {
        /// Takes so many bytes, and then no more until it is told otherwise.
        struct Disk(Vec<u8>, usize);
        impl Write for Disk {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let len = bytes.len().min(self.1 - self.0.len());
                self.0.extend(&bytes[..len]);
                if len == 0 {
                    Err(Errno::ENOSPC.into())
                } else {
                    Ok(len)
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let (mut disk, mut is_torn) = (Disk(Vec::new(), 7), false);
        write_line(&mut disk, &mut is_torn, b"one\n").unwrap();
        for _ in 0..2 {
            let error = write_line(&mut disk, &mut is_torn, b"second\n").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        }
        assert!(is_torn);
        disk.1 = 100;
        write_line(&mut disk, &mut is_torn, b"third\n").unwrap();
        write_line(&mut disk, &mut is_torn, b"fourth\n").unwrap();
        assert_eq!(disk.0, b"one\nsec\nthird\nfourth\n");
        assert_eq!(
            write_line(&mut io::sink(), &mut is_torn, b"").map_err(|error| error.kind()),
            Ok(())
        );
    }
}
