//! Reads the cluster once, for subcommands that evaluate policies without an agent.

use std::path::PathBuf;
use std::sync::Arc;

use kube::Client;
use kube::api::ListParams;
use kube::core::{ObjectList, Request};

use super::super::decode::wire::WireObject;
use super::super::kinds::workload::WORKLOADS;
use super::super::kinds::{KINDS, Kind, Object};
use super::super::location::{Location, Problem, ProblemKind, Severity};
use super::super::manifests::{self, Loaded, Located};
use super::super::resource::{KindInfo, Resource, Watched};
use super::connect::Access;
use super::discovery::{self, DiscoveredKind};
use super::error::{ApiError, ApiErrorKind};
use super::watch::{Collection, PAGE};

/// Reads everything that verdicts use. A kind that may not be read and is not necessary is a warning among the problems.
pub fn load(access: &Access) -> Result<Loaded, ApiError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| ApiError::new(ApiErrorKind::Unreachable, error.to_string()))?;
    runtime.block_on(read(access))
}

async fn read(access: &Access) -> Result<Loaded, ApiError> {
    let client = access.connect().await.map_err(ApiError::from)?;
    let name = access.name().await;
    let mut snapshot = Snapshot { client, name, loaded: Loaded::default() };
    for entry in KINDS.iter().filter(|entry| entry.info.watched != Watched::WhereServed) {
        snapshot.kind(&entry.kind, &once(entry.info), entry.info.need).await?;
    }
    for workload in WORKLOADS.iter().filter(|workload| workload.listed) {
        snapshot.documents(&once(&workload.info), workload.info.need).await?;
    }
    match discovery::discover(&snapshot.client).await {
        Ok(discovered) => {
            for DiscoveredKind { kind, collection } in discovered {
                let collection = Collection { verbs: &["list"], ..collection };
                let need = kind.info().map_or(Need::ForMore, |info| info.need);
                snapshot.kind(&kind, &collection, need).await?;
            }
        }
        Err(error) => snapshot.problem(Severity::Warning, &error.to_string()),
    }
    snapshot.loaded.count();
    Ok(snapshot.loaded)
}

fn once(info: &KindInfo) -> Collection {
    Collection { verbs: &["list"], ..Collection::of(info) }
}

/// What happens when a kind may not be read, or the API server does not have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cluster) enum Need {
    /// The subcommand fails: no verdict would be right.
    ForVerdicts,
    /// The subcommand warns: verdicts are right without the kind, but some know less.
    ForMore,
}

/// Reads a cluster once, kind by kind.
pub(in crate::cluster) struct Snapshot {
    client: Client,
    name: String,
    loaded: Loaded,
}

impl Snapshot {
    async fn kind(&mut self, kind: &Kind, collection: &Collection, need: Need) -> Result<(), ApiError> {
        match kind.info() {
            Some(info) if info.keeps_lines => self.documents(collection, need).await,
            _ => kind.resource().list(self, kind, collection, need).await,
        }
    }

    /// Lists objects of which only the model is needed.
    pub async fn objects<R: Resource>(
        &mut self,
        kind: &Kind,
        collection: &Collection,
        need: Need,
    ) -> Result<(), ApiError> {
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page: Result<ObjectList<WireObject<R>>, ApiError> = collection.page(&self.client, &params).await;
            let Some(page) = self.allowed(page, need)? else { return Ok(()) };
            for listed in page.items {
                match listed.decoded {
                    Ok(object) => {
                        let object: Object = object.with_kind(kind).into();
                        let located = Located {
                            place: location(&object, collection),
                            object,
                            namespace_defaulted: false,
                            lines: None,
                            source_kept: false,
                        };
                        self.loaded.objects.push(located);
                    }
                    Err(violations) => {
                        let why = violations.first().map(ToString::to_string).unwrap_or_default();
                        let namespace = listed.namespace.map(|namespace| format!("{namespace}/")).unwrap_or_default();
                        let what = format!("{} {namespace}{}: {why}", collection.plural, listed.name);
                        self.problem(Severity::Warning, &what);
                    }
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(next) => params.continue_token = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// Lists objects as a file would hold them, with the lines of their fields.
    async fn documents(&mut self, collection: &Collection, need: Need) -> Result<(), ApiError> {
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = self.text(collection, &params).await;
            let Some(text) = self.allowed(page, need)? else { return Ok(()) };
            let page = manifests::load_bytes(&self.name, text.as_bytes());
            for mut located in page.objects {
                located.place = location(&located.object, collection);
                self.loaded.objects.push(located);
            }
            // The server accepted the object, so a newer API has the unknown field.
            for mut problem in page.problems.into_iter().filter(|p| p.kind != ProblemKind::UnknownField) {
                problem.place = Location { field: problem.place.field, ..self.location() };
                self.loaded.problems.push(problem);
            }
            self.loaded.problems_left_out += page.problems_left_out;
            match next_page(&text) {
                Some(next) => params.continue_token = Some(next),
                None => return Ok(()),
            }
        }
    }

    async fn text(&self, collection: &Collection, params: &ListParams) -> Result<String, ApiError> {
        let api_error = |error: kube::Error| ApiError::of(&error, collection.request("list"));
        let request = Request::new(collection.url(None)).list(params);
        let request = request.map_err(kube::Error::BuildRequest).map_err(api_error)?;
        self.client.request_text(request).await.map_err(api_error)
    }

    /// `None`, with a warning, if the account may not read the kind or the server lacks it, and verdicts do not need it.
    fn allowed<T>(&mut self, answer: Result<T, ApiError>, need: Need) -> Result<Option<T>, ApiError> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error)
                if need == Need::ForMore && matches!(error.kind, ApiErrorKind::Forbidden | ApiErrorKind::NotFound) =>
            {
                self.problem(Severity::Warning, &error.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn location(&self) -> Location {
        Location::file(&Arc::new(PathBuf::from(&self.name)))
    }

    fn problem(&mut self, severity: Severity, message: &str) {
        self.loaded.problems.push(Problem {
            kind: ProblemKind::Shape,
            severity,
            place: self.location(),
            object: String::new(),
            is_policy: false,
            message: message.to_owned(),
            value: None,
        });
    }
}

/// An object of the API server has no file: `staging/networkpolicies/db-np` stands for it.
fn location(object: &Object, collection: &Collection) -> Location {
    let (_, namespace, name) = object.identity();
    let path = PathBuf::from_iter([&*namespace, &*collection.plural, &*name]);
    Location::file(&Arc::new(path))
}

fn next_page(list: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct List {
        #[serde(default)]
        metadata: ListMetadata,
    }
    #[derive(Default, serde::Deserialize)]
    struct ListMetadata {
        #[serde(rename = "continue", default)]
        next: Option<String>,
    }
    let list: List = serde_json::from_str(list).ok()?;
    list.metadata.next.filter(|token| !token.is_empty())
}
