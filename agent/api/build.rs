//! Compiles the protobuf definitions with a pure Rust compiler (no `protoc` on the build machine).

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["proto/agent.proto"], ["proto"])?;
    tonic_prost_build::configure().bytes(".nodeless.agent.v1").compile_fds(files)?;
    Ok(())
}
