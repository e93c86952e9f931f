//! The neighbour that everybody fears, and the one that only wants to be served.
#![allow(unsafe_code)] // raw system calls, with arguments that no crate lets through

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::exit;
use std::time::{Duration, Instant};

/// Forks for ever; so do its children.
pub(crate) fn fork_bomb() -> ! {
    loop {
        // SAFETY: one thread, and the child goes on as this process does.
        if unsafe { libc::fork() } == -1 {
            std::thread::yield_now();
        }
    }
}

/// Takes memory, a MiB at a time, and touches it, until it is killed.
pub(crate) fn eat_memory() -> ! {
    let mut held: Vec<Vec<u8>> = Vec::new();
    loop {
        held.push(vec![1; 1 << 20]);
        std::hint::black_box(&held);
    }
}

/// Makes empty files below `directory` for ever; goes on when it can make no more.
pub(crate) fn flood_inodes(directory: &str) -> ! {
    for number in 0u64.. {
        let place = format!("{directory}/{}", number / 1000);
        if number.is_multiple_of(1000) {
            let _ = std::fs::create_dir(&place);
        }
        if std::fs::File::create(format!("{place}/{number}")).is_err() {
            std::thread::yield_now();
        }
    }
    exit(0)
}

/// Writes lines as fast as they are taken.
pub(crate) fn flood_log() -> ! {
    let block = "all work and no play makes a container a dull neighbour\n".repeat(1000);
    loop {
        if io::stdout().write_all(block.as_bytes()).is_err() {
            exit(1);
        }
    }
}

/// Burns `threads` CPUs.
pub(crate) fn burn(threads: usize) -> ! {
    for _ in 1..threads {
        std::thread::spawn(spin);
    }
    spin()
}

fn spin() -> ! {
    let mut number = 1u64;
    loop {
        number = std::hint::black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

/// Gives back what it gets on port 7, to one client at a time.
pub(crate) fn echo() -> ! {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 7)).expect("port 7 is free");
    println!("ready");
    for client in listener.incoming() {
        let Ok(mut client) = client else { continue };
        let _ = client.set_nodelay(true);
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = client.read(&mut buffer) {
            if client.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
    }
    exit(1)
}

/// Asks the echo for so many milliseconds, a request every millisecond; prints what half of the requests and what 99 of a
/// hundred took at the most, in nanoseconds.
pub(crate) fn ask_echo(milliseconds: u64) {
    let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, 7)).expect("the echo listens");
    connection.set_nodelay(true).expect("no delay");
    let (begun, mut taken, mut answer) = (Instant::now(), Vec::new(), [0; 64]);
    while begun.elapsed() < Duration::from_millis(milliseconds) || taken.len() < 100 {
        let asked = Instant::now();
        connection.write_all(&[7; 64]).expect("asked");
        connection.read_exact(&mut answer).expect("answered");
        taken.push(asked.elapsed().as_nanos());
        // As clients do, who have something else to do too.
        std::thread::sleep(Duration::from_millis(1));
    }
    taken.sort_unstable();
    println!("{} {}", taken[taken.len() / 2], taken[taken.len() * 99 / 100]);
}
