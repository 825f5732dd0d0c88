//! The cluster as it is now, read once: for the verbs that judge.

use std::path::PathBuf;
use std::sync::Arc;

use kube::Client;
use kube::api::ListParams;
use kube::core::{ObjectList, Request};

use super::super::location::{Location, Problem, ProblemKind, Severity};
use super::super::manifests::{self, Loaded, Located, identity};
use super::connect::Access;
use super::error::{ApiError, ApiErrorKind};
use super::items::{self, Item, Named, Raw};
use super::others;
use super::watch::{Collection, PAGE};
use crate::model::cluster::Object;

/// All that the API server has for a verdict. What may not be read but is not needed for one is a warning among the
/// problems.
pub fn load(access: &Access) -> Result<Loaded, ApiError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| ApiError::new(ApiErrorKind::Unreachable, error.to_string()))?;
    runtime.block_on(read(access))
}

async fn read(access: &Access) -> Result<Loaded, ApiError> {
    let client = access.connect().await.map_err(ApiError::from)?;
    let name = access.name().await;
    let mut once = Once { client, name, loaded: Loaded::default() };
    let core = |plural| Collection { verbs: &["list"], ..Collection::of("", "v1", plural) };
    let group = |group, plural| Collection { verbs: &["list"], ..Collection::of(group, "v1", plural) };
    once.objects::<items::Namespace>(&core("namespaces"), Need::Verdict).await?;
    once.documents(&group("networking.k8s.io", "networkpolicies"), Need::Verdict).await?;
    once.objects::<items::Pod>(&core("pods"), Need::Verdict).await?;
    once.objects::<items::Node>(&core("nodes"), Need::More).await?;
    once.documents(&core("services"), Need::More).await?;
    once.objects::<items::EndpointSlice>(&group("discovery.k8s.io", "endpointslices"), Need::More).await?;
    for plural in ["deployments", "statefulsets", "daemonsets"] {
        once.documents(&group("apps", plural), Need::More).await?;
    }
    for plural in ["jobs", "cronjobs"] {
        once.documents(&group("batch", plural), Need::More).await?;
    }
    match others::find(&once.client).await {
        Ok(found) => {
            for found in found {
                let kind = found.kind();
                let resource = Collection { verbs: &["list"], ..found.resource() };
                let from = once.loaded.objects.len();
                once.objects::<Named>(&resource, Need::More).await?;
                for located in &mut once.loaded.objects[from..] {
                    if let (Object::OtherPolicy(o), super::super::change::Kind::OtherPolicy { group, kind }) =
                        (&mut located.object, &kind)
                    {
                        (o.group, o.kind) = (group.clone(), kind.clone());
                    }
                }
            }
        }
        Err(error) => once.problem(Severity::Warning, &error.to_string()),
    }
    once.loaded.count();
    Ok(once.loaded)
}

/// What an answer without the resource is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Nothing.
    Verdict,
    /// Less.
    More,
}

struct Once {
    client: Client,
    name: String,
    loaded: Loaded,
}

impl Once {
    /// Objects of which only the model is needed.
    async fn objects<R: Raw>(&mut self, resource: &Collection, need: Need) -> Result<(), ApiError> {
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page: Result<ObjectList<Item<R>>, ApiError> = resource.page(&self.client, &params).await;
            let Some(page) = self.allowed(page, need)? else { return Ok(()) };
            for item in page.items {
                match item.object {
                    Ok(object) => {
                        let located = Located {
                            place: place(&object, resource),
                            object,
                            namespace_defaulted: false,
                            lines: None,
                            source_kept: false,
                        };
                        self.loaded.objects.push(located);
                    }
                    Err(violations) => {
                        let why = violations.first().map(ToString::to_string).unwrap_or_default();
                        let namespace = item.namespace.map(|namespace| format!("{namespace}/")).unwrap_or_default();
                        let what = format!("{} {namespace}{}: {why}", resource.plural, item.name);
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

    /// Objects of which it counts what is written, as in a file.
    async fn documents(&mut self, resource: &Collection, need: Need) -> Result<(), ApiError> {
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = self.text(resource, &params).await;
            let Some(text) = self.allowed(page, need)? else { return Ok(()) };
            let page = manifests::load_bytes(&self.name, text.as_bytes());
            for mut located in page.objects {
                located.place = place(&located.object, resource);
                self.loaded.objects.push(located);
            }
            // The server took the object: a field unknown here is a newer server's.
            for mut problem in page.problems.into_iter().filter(|p| p.kind != ProblemKind::UnknownField) {
                problem.place = Location { field: problem.place.field, ..self.place() };
                self.loaded.problems.push(problem);
            }
            self.loaded.problems_left_out += page.problems_left_out;
            match next_page(&text) {
                Some(next) => params.continue_token = Some(next),
                None => return Ok(()),
            }
        }
    }

    async fn text(&self, resource: &Collection, params: &ListParams) -> Result<String, ApiError> {
        let api_error = |error: kube::Error| ApiError::of(&error, resource.request("list"));
        let request = Request::new(resource.url(None)).list(params);
        let request = request.map_err(kube::Error::BuildRequest).map_err(api_error)?;
        self.client.request_text(request).await.map_err(api_error)
    }

    /// Without a right, or without the resource, a verdict may still be worth something.
    fn allowed<T>(&mut self, answer: Result<T, ApiError>, need: Need) -> Result<Option<T>, ApiError> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error)
                if need == Need::More && matches!(error.kind, ApiErrorKind::Forbidden | ApiErrorKind::NotFound) =>
            {
                self.problem(Severity::Warning, &error.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn place(&self) -> Location {
        Location::file(&Arc::new(PathBuf::from(&self.name)))
    }

    fn problem(&mut self, severity: Severity, message: &str) {
        self.loaded.problems.push(Problem {
            kind: ProblemKind::Shape,
            severity,
            place: self.place(),
            object: String::new(),
            message: message.to_owned(),
            value: None,
        });
    }
}

/// `staging/networkpolicies/db-np`: no file and no line, but where to look.
fn place(object: &Object, resource: &Collection) -> Location {
    let (_, namespace, name) = identity(object);
    let path = PathBuf::from_iter([&*namespace, &*resource.plural, &*name]);
    Location::file(&Arc::new(path))
}

fn next_page(list: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct List {
        #[serde(default)]
        metadata: Meta,
    }
    #[derive(Default, serde::Deserialize)]
    struct Meta {
        #[serde(rename = "continue", default)]
        next: Option<String>,
    }
    let list: List = serde_json::from_str(list).ok()?;
    list.metadata.next.filter(|token| !token.is_empty())
}
