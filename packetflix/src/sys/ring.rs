//! A BPF ring buffer as its reader has it: in memory that is shared with the kernel. Reading takes no call to `bpf()`, and so
//! no right but to have the descriptor.
//!
//! Source: `kernel/bpf/ringbuf.c`: `struct bpf_ringbuf` with `consumer_pos` and `producer_pos`, each on a page of its own, then
//! the data, twice in a row, so that no record is cut; `include/uapi/linux/bpf.h` for a record's header. Kernel 5.8.

use std::{
    io,
    num::NonZero,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering, fence},
    },
};

use nix::{
    libc::{c_void, off_t},
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
    unistd::{SysconfVar, sysconf},
};

/// `BPF_RINGBUF_BUSY_BIT`: its writer has not finished the record.
const BUSY: u32 = 1 << 31;

/// `BPF_RINGBUF_DISCARD_BIT`: its writer has given the record up.
const DISCARDED: u32 = 1 << 30;

/// `BPF_RINGBUF_HDR_SZ`: bytes of a record's header, of which the first four are its length and the two bits.
const HEADER_LEN: usize = 8;

/// A ring that can be read, by one reader.
pub(crate) struct RingReader {
    descriptor: OwnedFd,
    pages: Arc<RingPages>,
    /// Where the oldest record begins that was not removed.
    read: usize,
    /// Where the record after it begins, once it has been looked at.
    next: usize,
    /// Where the kernel was going to write when that was last looked up.
    written: usize,
    /// Whether records were removed since it was last made sure that the kernel knows of that, and wakes with the next.
    has_removed: bool,
}

/// The pages of a ring. Whoever has them knows how far it was written and read.
#[derive(Debug)]
pub(crate) struct RingPages {
    /// How far it was read. The reader writes it.
    consumer: Mapping,
    /// How far it was written, and the data.
    producer: Mapping,
    page_size: usize,
    /// Bytes of the data: a power of two.
    size: usize,
}

impl RingReader {
    /// Maps a ring of `size` bytes.
    ///
    /// # Errors
    /// When it is no ring buffer of that size, or there is no room for the mapping.
    pub(crate) fn map(descriptor: OwnedFd, size: u32) -> io::Result<Self> {
        let pages = RingPages::map(descriptor.as_fd(), size)?;
        let read = pages.read();
        Ok(Self {
            descriptor,
            written: pages.written(),
            pages: Arc::new(pages),
            read,
            next: read,
            has_removed: false,
        })
    }

    /// Reads on where it is said to have been read to, whoever has said so.
    pub(crate) fn restart(&mut self) {
        self.read = self.pages.read();
        self.next = self.read;
        self.written = self.pages.written();
        self.has_removed = false;
    }

    /// How far it is written and read.
    pub(crate) fn pages(&self) -> &Arc<RingPages> {
        &self.pages
    }

    /// The oldest record that is whole. `None` when there is none; then the kernel wakes whoever waits for the descriptor with
    /// the next one.
    pub(crate) fn head(&mut self) -> Option<&[u8]> {
        loop {
            if self.read == self.written {
                self.tell_of_removal();
                self.written = self.pages.written();
                if self.read == self.written {
                    return None;
                }
            }
            let header = self.pages.header(self.read);
            if header & BUSY != 0 {
                if !self.tell_of_removal() {
                    return None;
                }
                continue;
            }
            let len = self.pages.len_of(header);
            self.next = self
                .read
                .wrapping_add((HEADER_LEN + len).next_multiple_of(HEADER_LEN));
            if header & DISCARDED == 0 {
                return Some(self.pages.record(self.read, len));
            }
            self.remove_head();
        }
    }

    /// Removes the record that [`head`](Self::head) gave last. Does nothing if that was removed.
    pub(crate) fn remove_head(&mut self) {
        if self.next != self.read {
            self.read = self.next;
            self.has_removed = true;
            self.pages.set_read(self.read);
        }
    }

    /// Has the next look at the ring see whatever is written before the kernel knows how far it was read. The kernel wakes for
    /// what it writes after that. Whether there was something to tell.
    fn tell_of_removal(&mut self) -> bool {
        if self.has_removed {
            fence(Ordering::SeqCst);
        }
        std::mem::take(&mut self.has_removed)
    }
}

impl AsFd for RingReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl RingPages {
    fn map(ring: BorrowedFd<'_>, size: u32) -> io::Result<Self> {
        let page_size = page_size()?;
        if !size.is_power_of_two() || (size as usize) < page_size {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let size = size as usize;
        Ok(Self {
            consumer: Mapping::new(ring, 0, page_size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?,
            producer: Mapping::new(ring, page_size, page_size + 2 * size, ProtFlags::PROT_READ)?,
            page_size,
            size,
        })
    }

    /// Bytes that were written and not yet read.
    pub(crate) fn waiting(&self) -> usize {
        // What is read first grows too: the other way round more could seem to be read than was written. Acquiring it
        // keeps the order on processors that would look ahead; the reader releases it when it has read.
        let read = self.read();
        self.written().wrapping_sub(read)
    }

    /// Bytes that were ever written, modulo the numbers that there are.
    pub(crate) fn written(&self) -> usize {
        // The kernel releases it when a record's header is in place.
        self.producer.position().load(Ordering::Acquire)
    }

    fn read(&self) -> usize {
        self.consumer.position().load(Ordering::Acquire)
    }

    /// The kernel may write over what is read from now on.
    fn set_read(&self, position: usize) {
        self.consumer.position().store(position, Ordering::Release);
    }

    /// The first four bytes of the record that begins there.
    fn header(&self, position: usize) -> u32 {
        let offset = self.page_size + (position & (self.size - 1));
        debug_assert!(offset.is_multiple_of(HEADER_LEN), "{offset}");
        // SAFETY: positions are multiples of eight, and this one is within the data, of which as much again follows. The
        // kernel writes a header atomically.
        let header = unsafe { self.producer.start.byte_add(offset).cast::<AtomicU32>().as_ref() };
        // Acquires what its writer wrote before it finished the record.
        header.load(Ordering::Acquire)
    }

    /// Bytes of the record with this header: less than the ring has, whatever the header says.
    fn len_of(&self, header: u32) -> usize {
        (header & !(BUSY | DISCARDED)) as usize & (self.size - 1)
    }

    /// The bytes of the record that begins there, which is whole.
    fn record(&self, position: usize, len: usize) -> &[u8] {
        let offset = self.page_size + (position & (self.size - 1)) + HEADER_LEN;
        debug_assert!(offset + len <= self.producer.len, "{offset} {len}");
        // SAFETY: it begins within the data, after its header of eight bytes, and is shorter than the data, so that it ends in
        // the second mapping of the data at the latest. Nobody writes there until it is removed, which takes `&mut`.
        unsafe { std::slice::from_raw_parts(self.producer.start.byte_add(offset).cast().as_ptr(), len) }
    }
}

/// Removes all that is in a ring that nobody writes to or reads.
///
/// # Errors
/// When it is no ring buffer, or there is no room for two pages of it.
pub(crate) fn empty(ring: BorrowedFd<'_>) -> io::Result<()> {
    let page_size = page_size()?;
    let consumer = Mapping::new(ring, 0, page_size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
    let producer = Mapping::new(ring, page_size, page_size, ProtFlags::PROT_READ)?;
    let written = producer.position().load(Ordering::Acquire);
    consumer.position().store(written, Ordering::Release);
    Ok(())
}

fn page_size() -> io::Result<usize> {
    let size = sysconf(SysconfVar::PAGE_SIZE)?;
    let size = size.and_then(|size| usize::try_from(size).ok());
    size.ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// Memory that is shared with the kernel.
#[derive(Debug)]
struct Mapping {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: the mapping belongs to the value, and is written atomically, whichever thread does so.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(ring: BorrowedFd<'_>, offset: usize, len: usize, protection: ProtFlags) -> io::Result<Self> {
        let pages = NonZero::new(len).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping, at an address that the kernel chooses, touches nothing that is mapped already.
        let start = unsafe {
            mmap(
                None,
                pages,
                protection,
                MapFlags::MAP_SHARED,
                ring,
                offset as off_t,
            )
        }?;
        Ok(Self { start, len })
    }

    /// What the first page begins with.
    fn position(&self) -> &AtomicUsize {
        // SAFETY: a page is aligned, begins with an `unsigned long`, and is mapped for as long as `self` lives.
        unsafe { self.start.cast::<AtomicUsize>().as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, has this size, and nobody has a reference into it any more.
        let unmapped = unsafe { munmap(self.start, self.len) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt as _};

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use proptest::prelude::*;

    use super::*;

    const SIZE: u32 = 4096;
    const PAGE: u64 = 4096;

    /// What the kernel does, to a file that is laid out as a ring.
    struct Writer {
        file: File,
        written: usize,
    }

    impl Writer {
        fn new() -> Self {
            let file = File::from(memfd_create("ring", MFdFlags::MFD_CLOEXEC).unwrap());
            file.set_len(2 * PAGE + 2 * u64::from(SIZE)).unwrap();
            Self { file, written: 0 }
        }

        fn reader(&self) -> RingReader {
            RingReader::map(self.file.try_clone().unwrap().into(), SIZE).unwrap()
        }

        /// Bytes that may still be written.
        fn room(&self) -> usize {
            let mut read = [0; size_of::<usize>()];
            self.file.read_exact_at(&mut read, 0).unwrap();
            SIZE as usize - (self.written - usize::from_ne_bytes(read))
        }

        /// Both places of a byte in the file: the data is there twice.
        fn write_at(&self, position: usize, bytes: &[u8]) {
            let size = SIZE as usize;
            let place = position % size;
            let (first, rest) = bytes.split_at(bytes.len().min(size - place));
            for (place, part) in [(place, first), (0, rest)] {
                for copy in [place, place + size] {
                    self.file.write_all_at(part, 2 * PAGE + copy as u64).unwrap();
                }
            }
        }

        /// Reserves room for a record; gives where it begins.
        fn reserve(&mut self, data: &[u8]) -> usize {
            let begin = self.written;
            self.write_at(begin, &(data.len() as u32 | BUSY).to_ne_bytes());
            self.write_at(begin + HEADER_LEN, data);
            self.written += (HEADER_LEN + data.len()).next_multiple_of(HEADER_LEN);
            self.file.write_all_at(&self.written.to_ne_bytes(), PAGE).unwrap();
            begin
        }

        fn finish(&self, begin: usize, len: usize, flags: u32) {
            self.write_at(begin, &(len as u32 | flags).to_ne_bytes());
        }
    }

    proptest! {
        #[test]
        fn records_come_as_they_were_written(
            records in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..1500), any::<bool>()), 0..60),
        ) {
            let mut writer = Writer::new();
            let mut reader = writer.reader();
            let mut expected = Vec::new();
            let mut got = Vec::new();
            for (data, is_discarded) in &records {
                while writer.room() < data.len() + 16 {
                    // What was given up is passed over.
                    if let Some(record) = reader.head() {
                        got.push(record.to_vec());
                    }
                    reader.remove_head();
                }
                let begin = writer.reserve(data);
                writer.finish(begin, data.len(), if *is_discarded { DISCARDED } else { 0 });
                if !is_discarded {
                    expected.push(data.clone());
                }
            }
            while let Some(record) = reader.head() {
                got.push(record.to_vec());
                reader.remove_head();
            }
            prop_assert_eq!(got, expected);
            prop_assert_eq!(reader.pages().waiting(), 0);
            prop_assert_eq!(writer.room(), SIZE as usize);
        }
    }

    #[test]
    fn an_empty_ring_has_nothing_of_before() {
        let mut writer = Writer::new();
        let begin = writer.reserve(&[1; 100]);
        writer.finish(begin, 100, 0);
        empty(writer.file.as_fd()).unwrap();
        let mut reader = writer.reader();
        assert!(reader.head().is_none() && writer.room() == SIZE as usize);
        let begin = writer.reserve(&[2; 8]);
        writer.finish(begin, 8, 0);
        assert_eq!(reader.head(), Some(&[2; 8][..]));
    }

    #[test]
    fn a_reader_goes_on_in_a_ring_that_was_emptied() {
        let mut writer = Writer::new();
        let mut reader = writer.reader();
        for data in [[1; 8], [2; 8]] {
            let begin = writer.reserve(&data);
            writer.finish(begin, 8, 0);
        }
        assert_eq!(reader.head(), Some(&[1; 8][..]));
        reader.remove_head();
        empty(writer.file.as_fd()).unwrap();
        reader.restart();
        assert_eq!(reader.head(), None);
        let begin = writer.reserve(&[3; 8]);
        writer.finish(begin, 8, 0);
        assert_eq!(reader.head(), Some(&[3; 8][..]));
    }

    #[test]
    fn what_is_not_finished_is_waited_for_and_what_is_kept_stays() {
        let mut writer = Writer::new();
        let mut reader = writer.reader();
        assert_eq!(reader.head(), None);
        let first = writer.reserve(b"first");
        let second = writer.reserve(b"second");
        writer.finish(second, 6, 0);
        // A younger one does not pass it.
        assert_eq!(reader.head(), None);
        writer.finish(first, 5, 0);
        for _ in 0..2 {
            assert_eq!(reader.head(), Some(&b"first"[..]));
        }
        assert_eq!(reader.pages().waiting(), 32);
        reader.remove_head();
        reader.remove_head();
        assert_eq!(reader.pages().waiting(), 16);
        // Another reader goes on where this one was.
        drop(reader);
        assert_eq!(writer.reader().head(), Some(&b"second"[..]));
    }

    #[test]
    fn what_is_no_ring_of_that_size_is_refused() {
        let writer = Writer::new();
        let map = |size| RingReader::map(writer.file.try_clone().unwrap().into(), size);
        for size in [0, 1, 4095, 6000] {
            assert!(map(size).is_err(), "{size}");
        }
        let (socket, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
        assert!(RingReader::map(socket.into(), SIZE).is_err());
    }

    #[test]
    fn no_header_leads_out_of_the_ring() {
        let mut writer = Writer::new();
        let mut reader = writer.reader();
        let begin = writer.reserve(&[7; 100]);
        for len in [!(BUSY | DISCARDED), SIZE, SIZE - 1, 101] {
            writer.finish(begin, len as usize, 0);
            assert!(reader.head().unwrap().len() < SIZE as usize);
        }
    }
}
