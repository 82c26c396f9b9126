//! Servers in Docker.

use std::fmt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use testcontainers_modules::testcontainers::bollard::Docker;
use testcontainers_modules::testcontainers::core::{ExecCommand, IntoContainerPort};
use testcontainers_modules::testcontainers::runners::AsyncRunner;
use testcontainers_modules::testcontainers::{
    ContainerAsync, ContainerRequest, Image, ImageExt, TestcontainersError,
};
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};

use crate::error::{Error, Kind};
use crate::ports;
use crate::settings::Settings;
use crate::unique::unique;

/// A first start may have to pull the image.
const START_MAX: Duration = Duration::from_secs(10 * 60);
const STOP_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// How often a new container may find that its port was taken in the meantime.
const PORTS_MAX: u32 = 5;

/// Outlives us to remove the container: reading ends when we end, however that happens. The
/// library removes it only while this process can still do so.
const WATCHER: &str = r#"
trap '' HUP INT QUIT TERM
while read -r _; do :; done
"$1" rm --force --volumes "$2"
"#;

/// One server in a container, with a fixed port of this machine.
pub(crate) struct Container<I: Image> {
    port: u16,
    host: String,
    container: Option<ContainerAsync<I>>,
    /// Its own, because a test's runtime may end before its servers do.
    runtime: Option<Runtime>,
    watcher: Option<Child>,
}

impl<I: Image> fmt::Debug for Container<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container").field("port", &self.port).finish_non_exhaustive()
    }
}

impl<I: Image + 'static> Container<I> {
    /// Starts a container whose server listens on this port inside, and answers when its log says
    /// that it serves.
    pub(crate) fn start(
        settings: &Settings,
        name: &str,
        inside: u16,
        request: impl Fn() -> ContainerRequest<I>,
    ) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|error| failed("run").caused_by(error))?;
        let mut attempts = 0;
        let (port, container, watcher) = loop {
            attempts += 1;
            let (port, name) = (ports::free()?, unique(name));
            let watcher = watch(settings.program("docker"), &name);
            let request = request()
                .with_container_name(&name)
                .with_mapped_port(port, inside.tcp())
                .with_startup_timeout(START_MAX);
            match runtime.block_on(request.start()) {
                Ok(container) => break (port, container, watcher),
                Err(error) if attempts < PORTS_MAX && is_taken(&error) => {}
                Err(error) => return Err(failed("start").caused_by(error)),
            }
        };
        let host = runtime.block_on(container.get_host());
        let host = host.map_err(|error| failed("reach").caused_by(error))?.to_string();
        let (container, runtime) = (Some(container), Some(runtime));
        Ok(Container { port, host, container, runtime, watcher })
    }

    /// Where this machine reaches the server; the same after a restart.
    pub(crate) fn address(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// Ends all its processes by SIGKILL.
    pub(crate) fn kill(&self) -> Result<(), Error> {
        self.on_container("kill", async |container| {
            if container.is_running().await? {
                let docker = Docker::connect_with_defaults()?;
                docker.kill_container(container.id(), None).await?;
                until_ended(container).await?;
            }
            Ok(())
        })
    }

    /// Has a command inside end the server in order.
    pub(crate) fn stop_by(&self, command: &str) -> Result<(), Error> {
        self.on_container("stop", async |container| {
            if container.is_running().await? {
                // Only what runs takes a signal.
                container.unpause().await.ok();
                container.exec(ExecCommand::new(["sh", "-c", command])).await?;
                until_ended(container).await?;
            }
            Ok(())
        })
    }

    pub(crate) fn pause(&self) -> Result<(), Error> {
        self.on_container("pause", async |container| Ok(container.pause().await?))
    }

    pub(crate) fn resume(&self) -> Result<(), Error> {
        self.on_container("resume", async |container| Ok(container.unpause().await?))
    }

    /// Starts what was stopped, with its data.
    pub(crate) fn start_again(&self) -> Result<(), Error> {
        self.on_container("start", async |container| Ok(container.start().await?))
    }

    fn on_container(
        &self,
        what: &str,
        work: impl AsyncFnOnce(
            &ContainerAsync<I>,
        ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
    ) -> Result<(), Error> {
        let container = self.container.as_ref().expect("it is there until it is dropped");
        let runtime = self.runtime.as_ref().expect("it is there until it is dropped");
        let done = runtime.block_on(async { timeout(START_MAX, work(container)).await });
        done.map_err(|error| failed(what).caused_by(error))?
            .map_err(|error| failed(what).caused_by(std::io::Error::other(error)))
    }
}

impl<I: Image> Drop for Container<I> {
    fn drop(&mut self) {
        let (container, runtime) = (self.container.take(), self.runtime.take());
        if let (Some(container), Some(runtime)) = (container, runtime) {
            // The runtime may not wait inside of another one.
            let work = move || {
                // What is left behind is the watcher's.
                runtime.block_on(container.rm()).ok();
                runtime.shutdown_background();
            };
            thread::scope(|scope| scope.spawn(work).join().ok());
        }
        if let Some(mut watcher) = self.watcher.take() {
            drop(watcher.stdin.take());
            watcher.wait().ok();
        }
    }
}

async fn until_ended<I: Image>(
    container: &ContainerAsync<I>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let deadline = Instant::now() + STOP_MAX;
    while container.is_running().await? {
        if Instant::now() >= deadline {
            return Err(format!("it does not end in {STOP_MAX:?}").into());
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// `None` where the engine has no command line, so that a SIGKILL leaves the container running.
fn watch(docker: Option<PathBuf>, container: &str) -> Option<Child> {
    Command::new("/bin/sh")
        .args(["-c", WATCHER, "tailrace-stack-watcher"])
        .arg(docker?)
        .arg(container)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()
}

fn is_taken(error: &TestcontainersError) -> bool {
    let text = format!("{error:?}");
    text.contains("port is already allocated") || text.contains("address already in use")
}

fn failed(what: &str) -> Error {
    Error::new(Kind::Server, format!("cannot {what} a server in Docker"))
}
