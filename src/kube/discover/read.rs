//! Reads through a client what the PURE files look at. Shell.

use std::time::Duration;

use futures_util::StreamExt;
use kube::api::{Api, ListParams};
use kube::core::{ApiResource, DynamicObject};
use kube::{Client, Error};
use serde_json::Value;

use super::facts::{Facts, Reading, short};
use super::query::{Place, Query};

/// Objects of a list that are fetched at once.
const PAGE: u32 = 500;
/// More objects of one kind are not taken in.
const MAX_OBJECTS: usize = 50_000;
/// How long one query may take, with all its pages.
const PATIENCE: Duration = Duration::from_secs(30);
/// Queries under way at once.
const AT_ONCE: usize = 6;
/// How often a list is begun anew when the server has forgotten where it was.
const RESTARTS: usize = 3;

/// Why nothing could be read at all.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// The API server does not answer.
    #[error("the API server does not answer: {0}")]
    Unreachable(#[source] Box<Error>),
    /// It takes too long.
    #[error("the API server has not answered within {} s", PATIENCE.as_secs())]
    Late,
    /// It does not know who asks.
    #[error("the API server refuses the credentials: {0}; check the context's user")]
    Unauthorized(String),
}

/// Reads everything. What cannot be read is kept as such; only a server that does not answer at all is an error.
pub async fn read(client: &Client) -> Result<Facts, DiscoverError> {
    let mut facts = Facts::default();
    // One question first, so that an unreachable server is one error and not thirty.
    let first = tokio::time::timeout(PATIENCE, objects(client, Query::Nodes))
        .await
        .map_err(|_| DiscoverError::Late)?;
    match first {
        Err(Error::Api(status)) if status.code == 401 => {
            return Err(DiscoverError::Unauthorized(short(&status.message)));
        }
        Err(error @ Error::Api(_)) => facts.insert(Query::Nodes, failed(&error)),
        Err(error) => return Err(DiscoverError::Unreachable(Box::new(error))),
        Ok(objects) => facts.insert(Query::Nodes, Reading::Objects(objects)),
    }
    let rest = Query::ALL.into_iter().filter(|q| *q != Query::Nodes);
    let mut answers = futures_util::stream::iter(rest)
        .map(|query| async move { (query, one(client, query).await) })
        .buffer_unordered(AT_ONCE);
    while let Some((query, reading)) = answers.next().await {
        facts.insert(query, reading);
    }
    Ok(facts)
}

/// Reads objects and lists of these places alone, and the object of one node. Several places may answer one query.
pub async fn read_places(
    client: &Client,
    places: Vec<(Query, Place)>,
    node: &str,
) -> Result<Facts, DiscoverError> {
    let own = async {
        let nodes = api(client, Query::Nodes.place());
        let node = nodes.get_opt(node).await?;
        let node = node.as_ref().map(value).transpose()?;
        Ok(node.iter().map(|node| Query::Nodes.trim(node)).collect())
    };
    let mut facts = Facts::default();
    facts.insert(Query::Nodes, reached(own.await)?);
    let mut answers = futures_util::stream::iter(places)
        .map(|(query, place)| async move { (query, objects_at(client, query, place).await) })
        .buffer_unordered(AT_ONCE);
    while let Some((query, answer)) = answers.next().await {
        facts.add(query, reached(answer)?);
    }
    Ok(facts)
}

/// An answer, unless nobody answered.
fn reached(answer: Result<Vec<Value>, Error>) -> Result<Reading, DiscoverError> {
    match answer {
        Ok(objects) => Ok(Reading::Objects(objects)),
        Err(Error::Api(status)) if status.code == 401 => {
            Err(DiscoverError::Unauthorized(short(&status.message)))
        }
        // A server that is starting or ending says nothing about settings.
        Err(error @ Error::Api(_)) if !is_away(&error) => Ok(failed(&error)),
        Err(error) => Err(DiscoverError::Unreachable(Box::new(error))),
    }
}

fn is_away(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 429 || status.code >= 500)
}

async fn one(client: &Client, query: Query) -> Reading {
    match tokio::time::timeout(PATIENCE, objects(client, query)).await {
        Ok(Ok(objects)) => Reading::Objects(objects),
        Ok(Err(error)) => failed(&error),
        Err(_) => Reading::Failed(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

fn failed(error: &Error) -> Reading {
    let Error::Api(status) = error else {
        return Reading::Failed(short(&error.to_string()));
    };
    if status.code == 404 {
        // Neither the object nor, perhaps, its kind.
        return Reading::Absent;
    }
    Reading::Failed(short(&format!("{} ({})", status.message, status.code)))
}

async fn objects(client: &Client, query: Query) -> Result<Vec<Value>, Error> {
    objects_at(client, query, query.place()).await
}

async fn objects_at(client: &Client, query: Query, place: Place) -> Result<Vec<Value>, Error> {
    let api = api(client, place);
    if let Some(name) = place.name {
        let object = api.get(name).await?;
        return Ok(vec![query.trim(&value(&object)?)]);
    }
    let mut restarts = 0;
    loop {
        match list(&api, query, place).await {
            // The list has become too old between two pages.
            Err(Error::Api(status)) if status.code == 410 && restarts < RESTARTS => restarts += 1,
            answer => return answer,
        }
    }
}

async fn list(api: &Api<DynamicObject>, query: Query, place: Place) -> Result<Vec<Value>, Error> {
    let mut params = ListParams::default().limit(PAGE);
    params.label_selector = place.labels.map(str::to_owned);
    let mut all = Vec::new();
    loop {
        let page = api.list(&params).await?;
        for object in &page.items {
            all.push(query.trim(&value(object)?));
        }
        if all.len() > MAX_OBJECTS {
            tracing::warn!(%query, "more than {MAX_OBJECTS} objects; the rest is not looked at");
            return Ok(all);
        }
        match page.metadata.continue_ {
            Some(next) if !next.is_empty() => params.continue_token = Some(next),
            _ => return Ok(all),
        }
    }
}

fn value(object: &DynamicObject) -> Result<Value, Error> {
    serde_json::to_value(object).map_err(Error::SerdeError)
}

/// The API of a place, without asking the server what it serves.
pub(super) fn api(client: &Client, place: Place) -> Api<DynamicObject> {
    let resource = resource(place);
    match place.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

pub(super) fn resource(place: Place) -> ApiResource {
    let api_version = if place.group.is_empty() {
        place.version.to_owned()
    } else {
        format!("{}/{}", place.group, place.version)
    };
    ApiResource {
        group: place.group.to_owned(),
        version: place.version.to_owned(),
        api_version,
        kind: place.kind.to_owned(),
        plural: place.plural.to_owned(),
    }
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
