//! Notices that the reader of a pipe goes, without writing into it.

use std::fs::File;

/// Waits until nobody reads from this pipe any more; for ever where it is none, or where the system does not tell.
#[cfg(unix)]
pub fn reader_gone(file: &File) -> impl Future<Output = ()> + use<> {
    use std::os::unix::fs::FileTypeExt as _;

    let (sender, gone) = tokio::sync::oneshot::channel();
    let is_pipe = file
        .metadata()
        .is_ok_and(|metadata| metadata.file_type().is_fifo());
    if let Some(pipe) = file.try_clone().ok().filter(|_| is_pipe) {
        // It lives as long as the pipe has a reader, and this program.
        std::thread::spawn(move || wait(&pipe).map(|()| sender.send(())));
    }
    async {
        if gone.await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Waits for what is told of a descriptor without having been asked for: that it has an error, or no other end.
#[cfg(unix)]
fn wait(pipe: &File) -> rustix::io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};

    let mut pipe = [PollFd::new(pipe, PollFlags::empty())];
    loop {
        match poll(&mut pipe, None) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Waits until nobody reads from this pipe any more; for ever, since this system tells only whoever writes.
#[cfg(not(unix))]
pub fn reader_gone(_: &File) -> impl Future<Output = ()> + use<> {
    std::future::pending()
}

#[cfg(all(test, unix))]
mod tests {
    use std::{os::fd::OwnedFd, time::Duration};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn readers_that_go_are_noticed_while_nothing_is_written() {
        let (reader, writer) = std::io::pipe().unwrap();
        let writer = File::from(OwnedFd::from(writer));
        let waits = timeout(Duration::from_millis(50), reader_gone(&writer)).await;
        assert!(waits.is_err());
        drop(reader);
        timeout(Duration::from_secs(5), reader_gone(&writer))
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn what_is_no_pipe_has_no_reader() {
        let file = File::open("/dev/null").unwrap();
        let waits = timeout(Duration::from_millis(50), reader_gone(&file)).await;
        assert!(waits.is_err());
    }
}
