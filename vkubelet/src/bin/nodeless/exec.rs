//! exec: our standard input, output, error and exit code are the command's.

use std::io::Write;

use tokio::io::AsyncReadExt;
use vkubelet::client_api::frames::{self, Frame};

use crate::args::ExecOrder;
use crate::connect::{Connection, target};
use crate::failure::Failure;

pub(crate) async fn exec(connection: &Connection, order: &ExecOrder) -> Result<u8, Failure> {
    let mut query: Vec<(&str, &str)> = order.command.iter().map(|word| ("command", word.as_str())).collect();
    query.extend(order.container.as_deref().map(|c| ("container", c)));
    if order.stdin {
        query.push(("stdin", "true"));
    }
    let path = target(&["v1", "pods", &order.pod.namespace, &order.pod.pod, "exec"], &query);
    let (mut reader, mut writer) = tokio::io::split(connection.exec(&path).await?);
    let input = async {
        if order.stdin {
            let mut stdin = tokio::io::stdin();
            let mut buffer = vec![0; 32 * 1024];
            loop {
                match stdin.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => frames::write(&mut writer, &Frame::Stdin(buffer[..n].to_vec())).await?,
                }
            }
            frames::write(&mut writer, &Frame::StdinEnd).await?;
        }
        // Only the other side ends the conversation.
        std::future::pending::<Result<u8, Failure>>().await
    };
    let output = async {
        loop {
            match frames::read(&mut reader).await? {
                Some(Frame::Stdout(bytes)) => put(&mut std::io::stdout(), &bytes)?,
                Some(Frame::Stderr(bytes)) => put(&mut std::io::stderr(), &bytes)?,
                Some(Frame::Exit(end)) if !end.error.is_empty() => {
                    eprintln!("error: {}", end.error);
                    return Ok(code(end.code).max(1));
                }
                Some(Frame::Exit(end)) => return Ok(code(end.code)),
                Some(Frame::Stdin(_) | Frame::StdinEnd) => {
                    return Err(Failure::Talk("vkubelet sent input".to_owned()));
                }
                // Without an exit code nobody may believe that it succeeded.
                None => return Err(Failure::Talk("the connection ended before the command did".to_owned())),
            }
        }
    };
    let mut output = std::pin::pin!(output);
    tokio::select! {
        code = &mut output => code,
        // A broken pipe of input says nothing: the command may have ended, and its end is on its way.
        result = input => match result {
            Err(Failure::Frames(_)) => output.await,
            other => other,
        },
    }
}

fn put(out: &mut impl Write, bytes: &[u8]) -> Result<(), Failure> {
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Failure::output)
}

fn code(code: i32) -> u8 {
    u8::try_from(code & 0xff).unwrap_or(1)
}
