//! The OpenAPI document, made from the routes.

use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::handlers;

#[derive(OpenApi)]
#[openapi(
    info(title = "Nodeless billing", description = "Who used what, each second.", license(name = "Apache-2.0", identifier = "Apache-2.0")),
    paths(handlers::records, handlers::pod, handlers::verify, handlers::openapi, handlers::healthz),
    modifiers(&Bearer),
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        document.components.get_or_insert_default().add_security_scheme("bearer", scheme);
    }
}

/// The OpenAPI document of the interface.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}
