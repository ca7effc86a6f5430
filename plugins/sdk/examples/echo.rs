//! A plugin that reports each task it is given and tells the server that it is done.

use std::{error::Error, process::ExitCode};

fn main() -> ExitCode {
    run().map_or_else(
        |error| {
            eprintln!("echo: {error}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

fn run() -> Result<(), Box<dyn Error>> {
    let (client, mut tasks) = elklet_plugin::connect()?;
    elklet_plugin::ignore_sigterm();
    client.send(9101, &[("state", "started"), ("detail", &elklet_plugin::detail().unwrap_or_default())])?;
    while let Some(task) = tasks.receive()? {
        client.send(9102, &[("task", &task.data_type.to_string()), ("data", &task.data)])?;
        client.answer(&task, Ok("echoed"))?;
    }
    client.high_priority().send(9101, &[("state", "stopped")])?;
    Ok(())
}
