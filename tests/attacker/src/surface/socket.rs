//! A client of the runtime's own sockets.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// Says hello to a shim or a keeper; prints `answered`, `closed`, or the errno of the connection.
pub(crate) fn ask(socket: &str) {
    let mut client = match UnixStream::connect(socket) {
        Ok(client) => client,
        Err(error) => return println!("errno{}", error.raw_os_error().unwrap_or(0)),
    };
    let hello = br#"{"id":1,"body":{"op":"hello","versions":{"lowest":1,"highest":1}}}"#;
    let frame = [b"Ns\0\0".as_slice(), &(hello.len() as u32).to_be_bytes(), hello].concat();
    let mut header = [0; 8];
    // Written to a socket that is closed already, it fails; so does the reading.
    match client.write_all(&frame).and_then(|()| client.read_exact(&mut header)) {
        Ok(()) => println!("answered"),
        Err(_) => println!("closed"),
    }
}
