//! A containerd engine of the test's own, as Kubernetes would use it, in a network namespace of its own.

use std::{
    collections::HashMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::Mutex,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use prost::Message;
use tonic::{Request, client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;

use crate::{
    image,
    leftovers::{SharedFolders, kill_processes_of, remove_control_groups, unmount_below},
    namespace::{Namespace, run},
    server::wait_until,
};

pub use crate::image::IMAGE;

/// Folders whose places cannot be chosen; innermost first.
const SHARED_FOLDERS: &[&str] = &[
    "/run/containerd/fifo",
    "/run/containerd/runc/k8s.io",
    "/run/containerd/runc",
    "/run/containerd/s",
    "/run/containerd",
    "/var/lib/cni/results",
    "/var/lib/cni/cache",
    "/var/lib/cni",
];

/// A running engine; stopped with its pods when dropped.
pub struct Containerd {
    engine: Child,
    folder: PathBuf,
    namespace: Namespace,
    pods: Mutex<Vec<String>>,
    _shared: SharedFolders,
}

/// A pod that runs, with one container.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Identifier of its sandbox.
    pub id: String,
    /// Identifier of its container.
    pub container: String,
    /// Its address, as the engine tells it.
    pub address: String,
}

impl Containerd {
    /// Starts the engine and makes its image.
    ///
    /// # Errors
    /// When it does not come up; the message holds its log.
    pub fn start() -> anyhow::Result<Self> {
        let shared = SharedFolders::look(SHARED_FOLDERS);
        let namespace = Namespace::new()?;
        let folder = std::env::temp_dir().join(format!("packetflix-containerd-{}", std::process::id()));
        fs::create_dir_all(folder.join("cni"))?;
        let path = |name: &str| folder.join(name).display().to_string();
        fs::write(path("config.toml"), config(&path))?;
        fs::write(path("cni/10-bridge.conflist"), network(&path("addresses")))?;
        File::create(path("log"))?;
        let containerd = Self {
            engine: spawn(&namespace, &folder)?,
            folder,
            namespace,
            pods: Mutex::default(),
            _shared: shared,
        };
        containerd.wait_until_ready()?;
        let archive = image::archive(&containerd.folder)?;
        containerd.ctr(&["images", "import", &archive.display().to_string()])?;
        Ok(containerd)
    }

    /// Ends the engine and starts it again. Its pods live on meanwhile.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.end();
        self.engine = spawn(&self.namespace, &self.folder)?;
        self.wait_until_ready()
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// Runs a pod with one container, whose image is [`IMAGE`].
    ///
    /// # Errors
    /// When the engine refuses; one such reason is another pod of that name.
    pub fn run_pod(&self, namespace: &str, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<Pod> {
        self.run_pod_with(namespace, name, labels, &[])
    }

    /// The same, with a command that its container runs in the place of the image's.
    ///
    /// # Errors
    /// As [`Self::run_pod`].
    pub fn run_pod_with(
        &self,
        namespace: &str,
        name: &str,
        labels: &[(&str, &str)],
        command: &[&str],
    ) -> anyhow::Result<Pod> {
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-of-{namespace}-{name}"),
                namespace: namespace.to_owned(),
            }),
            hostname: name.to_owned(),
            labels: labels.collect(),
        };
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
        };
        let id = self
            .call::<_, PodSandbox>("RunPodSandbox", request)?
            .pod_sandbox_id;
        if let Ok(mut pods) = self.pods.lock() {
            pods.push(id.clone());
        }
        let request = CreateContainerRequest {
            pod_sandbox_id: id.clone(),
            config: Some(ContainerConfig {
                metadata: Some(ContainerMetadata {
                    name: "sleeper".to_owned(),
                }),
                image: Some(ImageSpec {
                    image: IMAGE.to_owned(),
                }),
                command: command.iter().map(|&word| word.to_owned()).collect(),
            }),
            sandbox_config: Some(config),
        };
        let container: Container = self.call("CreateContainer", request)?;
        self.call::<_, Nothing>("StartContainer", container.clone())?;

        let sandbox = PodSandbox { pod_sandbox_id: id };
        let status: PodSandboxStatusResponse = self.call("PodSandboxStatus", sandbox.clone())?;
        let address = status
            .status
            .and_then(|status| status.network)
            .map(|network| network.ip)
            .context("a pod without an address")?;
        Ok(Pod {
            id: sandbox.pod_sandbox_id,
            container: container.container_id,
            address,
        })
    }

    /// Waits until the container of a pod has ended.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_for_end(&self, pod: &Pod) -> anyhow::Result<()> {
        wait_until(Duration::from_secs(10), || {
            let tasks = self.ctr(&["tasks", "list"])?;
            let mut rows = tasks.lines();
            Ok(!rows.any(|row| row.starts_with(&pod.container) && row.ends_with("RUNNING")))
        })
    }

    /// Ends a pod, and has the engine forget it.
    ///
    /// # Errors
    /// When the engine refuses.
    pub fn stop_pod(&self, id: &str) -> anyhow::Result<()> {
        let sandbox = PodSandbox {
            pod_sandbox_id: id.to_owned(),
        };
        self.call::<_, Nothing>("StopPodSandbox", sandbox.clone())?;
        self.call::<_, Nothing>("RemovePodSandbox", sandbox)?;
        if let Ok(mut pods) = self.pods.lock() {
            pods.retain(|pod| pod != id);
        }
        Ok(())
    }

    /// The first process of a pod or container, as containerd's own client tells it.
    ///
    /// # Errors
    /// When it has none.
    pub fn pid(&self, id: &str) -> anyhow::Result<u32> {
        let tasks = self.ctr(&["tasks", "list"])?;
        let mut rows = tasks.lines().map(str::split_whitespace);
        let mut row = rows
            .find(|row| row.clone().next() == Some(id))
            .with_context(|| format!("no {id} in: {tasks}"))?;
        Ok(row.nth(1).context("no PID")?.parse()?)
    }

    /// Runs `ctr` among the pods and gives what it prints.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub fn ctr(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let socket = self.socket();
        let socket = socket.to_str().context("a path that is not UTF-8")?;
        run(
            "ctr",
            &[&["--address", socket, "--namespace", "k8s.io"], arguments].concat(),
        )
    }

    fn wait_until_ready(&self) -> anyhow::Result<()> {
        // The network is read somewhat later than calls are answered.
        let ready = || {
            let status = self.call::<_, StatusResponse>("Status", Nothing {});
            Ok(status.is_ok_and(|status| {
                let conditions = status.status.unwrap_or_default().conditions;
                conditions.len() >= 2 && conditions.iter().all(|condition| condition.status)
            }))
        };
        wait_until(Duration::from_secs(60), ready)
            .with_context(|| fs::read_to_string(self.folder.join("log")).unwrap_or_default())
    }

    fn end(&mut self) {
        if let Ok(pid) = i32::try_from(self.engine.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.engine.wait();
    }

    /// A call of the runtime service, for callers inside and outside of an asynchronous test.
    fn call<Q, A>(&self, name: &str, request: Q) -> anyhow::Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let call = async {
            let endpoint = Endpoint::from_shared(format!("unix://{}", self.socket().display()))?;
            let mut grpc = Grpc::new(endpoint.connect().await?);
            grpc.ready().await?;
            let path = format!("/runtime.v1.RuntimeService/{name}").parse()?;
            let answer = grpc
                .unary(Request::new(request), path, ProstCodec::default())
                .await?;
            anyhow::Ok(answer.into_inner())
        };
        thread::scope(|scope| {
            let calling = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(call)
            });
            calling
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .with_context(|| format!("{name} failed"))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let pods = self.pods.lock().map(|pods| pods.clone()).unwrap_or_default();
        for pod in pods {
            let _ = self.stop_pod(&pod);
        }
        self.end();
        kill_processes_of(&self.folder);
        unmount_below(&self.folder);
        remove_control_groups(&["k8s.io"]);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn spawn(namespace: &Namespace, folder: &Path) -> anyhow::Result<Child> {
    let log = File::options().append(true).open(folder.join("log"))?;
    namespace
        .command("containerd")
        .arg("--config")
        .arg(folder.join("config.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start containerd")
}

fn config(path: &impl Fn(&str) -> String) -> String {
    let [root, state, socket, ttrpc, networks] = ["data", "state", "socket", "ttrpc", "cni"].map(path);
    format!(
        r#"
version = 2
root = "{root}"
state = "{state}"
[grpc]
address = "{socket}"
[ttrpc]
address = "{ttrpc}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}:latest"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{networks}"
"#
    )
}

fn network(addresses: &str) -> String {
    format!(
        r#"{{
    "cniVersion": "0.4.0",
    "name": "packetflix",
    "plugins": [{{
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": true,
        "ipam": {{
            "type": "host-local",
            "dataDir": "{addresses}",
            "ranges": [[{{"subnet": "10.9.128.0/18"}}]],
            "routes": [{{"dst": "0.0.0.0/0"}}]
        }}
    }}]
}}"#
    )
}

// What is sent and answered, with the fields that are of use here: `pkg/apis/runtime/v1/api.proto` of the
// repository kubernetes/cri-api.

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<RuntimeStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RuntimeStatus {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<RuntimeCondition>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RuntimeCondition {
    #[prost(bool, tag = "2")]
    status: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(map = "string, string", tag = "6")]
    labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

/// The answer to `RunPodSandbox`, and the request of three more calls.
#[derive(Clone, PartialEq, prost::Message)]
struct PodSandbox {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<PodSandboxStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodSandboxStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<PodSandboxNetworkStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodSandboxNetworkStatus {
    #[prost(string, tag = "1")]
    ip: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerMetadata {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

/// The answer to `CreateContainer`, and the request of `StartContainer`.
#[derive(Clone, PartialEq, prost::Message)]
struct Container {
    #[prost(string, tag = "1")]
    container_id: String,
}
