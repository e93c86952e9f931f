//! Converts one layer blob and says how long it took: `convert BLOB DIFF_ID OUT [LOWER…]` (layers below, lowest first).

use std::{fs::File, process::ExitCode, sync::Arc, time::Instant};

use image_snapshot::{Limits, convert::convert_blob};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("convert: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [blob, diff_id, out, below @ ..] = &args[..] else {
        return Err("usage: convert BLOB DIFF_ID OUT [LOWER…]".into());
    };
    let below = below.iter().map(|p| File::open(p).map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
    let file = File::options().read(true).write(true).create(true).truncate(true).open(out)?;
    let start = Instant::now();
    let converted = convert_blob(File::open(blob)?, &diff_id.parse()?, &below, file.try_clone()?, &Limits::default())?;
    let converted_at = start.elapsed();
    file.sync_all()?;
    println!(
        "{{\"convert_s\":{:.3},\"with_sync_s\":{:.3},\"bytes\":{},\"content\":{},\"entries\":{}}}",
        converted_at.as_secs_f64(),
        start.elapsed().as_secs_f64(),
        converted.bytes,
        converted.content,
        converted.entries
    );
    Ok(())
}
