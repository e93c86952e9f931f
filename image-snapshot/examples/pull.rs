//! Pulls an image into a store and shows it: `pull STORE REFERENCE [INSECURE-REGISTRY]`.

use std::process::ExitCode;

use image_snapshot::{EnsureRequest, Images, ImagesConfig, LocalAccess, PullPolicy};

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [store, reference, insecure @ ..] = &args[..] else {
        eprintln!("usage: pull STORE REFERENCE [INSECURE-REGISTRY]");
        return ExitCode::FAILURE;
    };
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("pull: no TLS provider");
        return ExitCode::FAILURE;
    }
    let request = EnsureRequest {
        reference: reference.clone(),
        policy: PullPolicy::Always,
        credentials: Vec::new(),
        local: LocalAccess::Trusted,
    };
    let start = std::time::Instant::now();
    let mut config = ImagesConfig::new(store);
    config.insecure_registries = insecure.to_vec();
    let pulled = match Images::open(config) {
        Ok(images) => images.ensure(request, |_| {}).await,
        Err(error) => Err(error),
    };
    match pulled {
        Ok(image) => {
            println!("{} {} bytes in {:?}", image.repo_digest, image.size, start.elapsed());
            for layer in image.rootfs.layers {
                println!("{} {}", layer.id, layer.path.display());
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("pull: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}
