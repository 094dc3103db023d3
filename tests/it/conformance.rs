//! Every request that the Django service's documentation shows, sent as it stands there, in an order in which each makes
//! sense: the status is the documented one, and the answer has the documented keys and types.
//!
//! `tests/examples` holds requests and answers to the letter. Put in their place are only ids, tokens and codes.

use std::fmt::Display;

use reqwest::{Method, header, multipart};
use serde_json::{Value, json};

use crate::{
    examples::{assert_shape, grey_jpeg, without_avatar},
    harness::{Actor, Face, PASSWORD, Service, Store},
    user::user_id,
};

/// A file of `tests/examples`.
macro_rules! example {
    ($name:literal) => {
        include_str!(concat!("../examples/", $name))
    };
}

/// An answer as the document shows it.
macro_rules! documented {
    ($name:literal) => {
        serde_json::from_str::<Value>(include_str!(concat!("../examples/", $name))).unwrap()
    };
}

/// A request as the document writes it: a line with method and path, headers, an empty line, the body.
struct Written<'a> {
    service: &'a Service,
    text: String,
}

impl<'a> Written<'a> {
    fn new(service: &'a Service, text: &str) -> Self {
        Self { service, text: text.to_owned() }
    }

    /// With something in the place of what nobody can know beforehand.
    #[track_caller]
    fn with(mut self, placeholder: &str, value: impl Display) -> Self {
        assert!(self.text.contains(placeholder), "{} has no {placeholder}", self.text);
        self.text = self.text.replace(placeholder, &format!("{value}"));
        self
    }

    fn by(self, actor: &Actor) -> Self {
        let token = actor.access_token.as_deref().unwrap();
        let placeholder = if self.text.contains("{access_token}") {
            "{access_token}"
        } else {
            "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9..."
        };
        self.with(placeholder, token)
    }

    fn request(&self) -> (reqwest::RequestBuilder, String) {
        let (head, body) = self.text.split_once("\n\n").unwrap_or((self.text.trim_end(), ""));
        let mut lines = head.lines();
        let (method, path) = lines.next().unwrap().split_once(' ').unwrap();
        let mut request = self.service.anonymous().request(method.parse::<Method>().unwrap(), path);
        for (name, value) in lines.map(|line| line.split_once(": ").unwrap()) {
            if value != "multipart/form-data" {
                request = request.header(name, value);
            }
        }
        (request, body.to_owned())
    }

    async fn expect(self, status: u16) -> Value {
        let (request, body) = self.request();
        self.judge(request.body(body), status).await
    }

    async fn judge(&self, request: reqwest::RequestBuilder, status: u16) -> Value {
        let answer = request.send().await.unwrap();
        let (got, headers) = (answer.status(), answer.headers().clone());
        let text = answer.text().await.unwrap();
        assert_eq!(got, status, "{}\n{text}", self.text);
        if status == 204 {
            assert_eq!(text, "", "{}", self.text);
            return Value::Null;
        }
        assert_eq!(headers[header::CONTENT_TYPE], "application/json", "{}", self.text);
        serde_json::from_str(&text).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_request_gets_the_documented_answer() {
    for store in Store::all() {
        let service = Service::start(store).await;
        println!("on {store:?}");
        let john = an_account_is_made_and_logged_in(&service).await;
        an_address_is_verified(&service, &john).await;
        let admin = service.admin("admin@example.com").await;
        users_are_managed(&service, &john, &admin).await;
        profiles_are_managed(&service, &john).await;
        roles_are_managed(&service, &john, &admin).await;
        let read = || Written::new(&service, example!("profile.http")).by(&john);
        let logout = Written::new(&service, example!("logout.http")).by(&john);
        assert_eq!(logout.expect(200).await, documented!("logout.json"));
        read().expect(401).await;
        service.stop().await;
    }
}

async fn an_account_is_made_and_logged_in(service: &Service) -> Actor {
    let registered = Written::new(service, example!("register.http")).expect(201).await;
    // What is shown of an account in the answer to a login holds for a registration as well.
    assert_shape(&registered, &documented!("register.json"), &documented!("login.json"));
    let logged_in = Written::new(service, example!("login.http")).expect(200).await;
    assert_shape(&logged_in, &documented!("login.json"), &Value::Null);
    let refresh = Written::new(service, example!("refresh.http"));
    let refresh = refresh.with("eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9...", logged_in["refresh_token"].as_str().unwrap());
    let refreshed = refresh.expect(200).await;
    assert_shape(&refreshed, &documented!("refresh.json"), &Value::Null);
    let mut john = service.anonymous();
    john.take_tokens(&refreshed);
    john
}

async fn an_address_is_verified(service: &Service, john: &Actor) {
    let sent = Written::new(service, example!("verification-sent.http")).by(john).expect(200).await;
    assert_eq!(sent, documented!("verification-sent.json"));
    let code = service.code_mailed_to("user@example.com", 2).await;
    let verified = Written::new(service, example!("verified.http")).with("123456", code).expect(200).await;
    assert_eq!(verified, documented!("verified.json"));
}

async fn users_are_managed(service: &Service, john: &Actor, admin: &Actor) {
    let user = documented!("user.json");
    let id = user_id(john);
    let read = Written::new(service, example!("user.http")).with("{id}", id).by(john).expect(200).await;
    assert_shape(&read, &user, &Value::Null);
    let updated = Written::new(service, example!("user-updated.http")).with("{id}", id).by(john).expect(200).await;
    assert_shape(&updated, &documented!("user-updated.json"), &user);
    assert_eq!((&updated["first_name"], &updated["roles"]), (&json!("Jonathan"), &json!(["Freelancer", "Seller"])));
    let created = Written::new(service, example!("user-created.http")).by(admin).expect(201).await;
    assert_shape(&created, &documented!("user-created.json"), &user);
    assert_eq!(created["roles"], json!(["Freelancer"]));

    // More Johns than one page holds.
    let back = json!({ "id": id, "first_name": "John" });
    john.call(Face::Rest, "UserService.UpdateUser", back).await.expect(200);
    let make = (0..21).map(|n| {
        let new = json!({
            "email": format!("john{n}@example.com"), "password": PASSWORD, "first_name": "John", "is_freelancer": true,
        });
        admin.call(Face::Rest, "UserService.CreateUser", new)
    });
    for made in futures_util::future::join_all(make).await {
        made.expect(201);
    }
    for caller in [john, admin] {
        let listed = Written::new(service, example!("users.http")).by(caller).expect(200).await;
        let mut elsewhere = documented!("users.json");
        elsewhere["results"][0] = user.clone();
        assert_shape(&listed, &documented!("users.json"), &elsewhere);
        assert_eq!(listed["count"], 22);
        let next = listed["next"].as_str().unwrap();
        let base = format!("http://{}/api/users/?", service.address);
        let query = next.strip_prefix(&base).unwrap_or_else(|| panic!("{next}"));
        let query: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        for (name, value) in [("page", "2"), ("page_size", "20"), ("search", "john"), ("role", "freelancer")] {
            assert!(query.contains(&(name.into(), value.into())), "{next}");
        }
        let next = caller.request(Method::GET, &next[base.len() - "/api/users/?".len()..]).send().await.unwrap();
        let next: Value = next.json().await.unwrap();
        assert_eq!(next["results"].as_array().unwrap().len(), 2);
        assert!(next["next"].is_null() && next["previous"].is_string(), "{next}");
    }
    let delete = Written::new(service, example!("user-deleted.http")).with("{id}", &created["id"]).by(admin);
    delete.expect(204).await;
}

async fn profiles_are_managed(service: &Service, john: &Actor) {
    let profile = documented!("profile.json");
    let read = Written::new(service, example!("profile.http")).by(john).expect(200).await;
    assert_shape(&read, &without_avatar(profile.clone()), &Value::Null);
    // The document writes the form as an object. These are its parts, the picture from nowhere else.
    let form = Written::new(service, example!("profile-form.http")).by(john);
    let (request, parts) = form.request();
    let parts: Value = serde_json::from_str(&parts.replace("<binary_file>", "null")).unwrap();
    let mut body = multipart::Form::new().part("avatar", multipart::Part::bytes(grey_jpeg()).file_name("me.jpg"));
    for (name, value) in parts.as_object().unwrap().iter().filter(|(_, value)| !value.is_null()) {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        body = body.text(name.clone(), text);
    }
    let changed = form.judge(request.multipart(body), 200).await;
    assert_shape(&changed, &documented!("profile-updated.json"), &profile);
    for (name, value) in parts.as_object().unwrap().iter().filter(|(_, value)| !value.is_null()) {
        assert_eq!(changed[name], *value);
    }
    let picture = john.http.get(changed["avatar"].as_str().unwrap()).send().await.unwrap();
    assert_eq!(picture.status(), 200);
    let read = Written::new(service, example!("profile.http")).by(john).expect(200).await;
    assert_shape(&read, &profile, &Value::Null);

    let other = service.user("other@example.com").await;
    let shown = Written::new(service, example!("profile-of.http")).with("{user_id}", user_id(john)).by(&other);
    // Without `streak_visibility`, which is for the owner.
    assert_shape(&shown.expect(200).await, &documented!("profile-of.json"), &Value::Null);
}

async fn roles_are_managed(service: &Service, john: &Actor, admin: &Actor) {
    let id = user_id(john);
    let roles = Written::new(service, example!("roles.http")).with("{id}", id).by(john).expect(200).await;
    let with_user = documented!("role-added.json");
    assert_shape(&roles, &documented!("roles.json"), &with_user);
    assert_eq!(
        (&roles["roles"], &roles["permissions"]),
        (&documented!("roles.json")["roles"], &documented!("roles.json")["permissions"])
    );
    let added = Written::new(service, example!("role-added.http")).with("{id}", id).by(admin).expect(201).await;
    assert_eq!(
        added,
        json!({
            "id": id, "email": "user@example.com", "roles": with_user["roles"], "permissions": with_user["permissions"],
        })
    );
    let removed =
        Written::new(service, example!("role-removed.http")).with("{id}", id).with("{role_name}", "moderator");
    removed.by(admin).expect(204).await;
    Written::new(service, example!("user-deleted.http")).with("{id}", user_id(admin)).by(john).expect(403).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_error_is_answered_as_documented() {
    for store in Store::all() {
        let service = Service::start_with(store, &[("RATE_LIMIT_LOGIN", "5/15m")]).await;
        let user = service.user("user@example.com").await;
        let post = async |path: &str, body: Value| {
            let answer = user.request(Method::POST, path).json(&body).send().await.unwrap();
            (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
        };
        let login = |password: &str| json!({ "email": "user@example.com", "password": password });

        let (status, blank) = post("/api/auth/register/", json!({ "email": "", "password": "weak" })).await;
        assert_eq!((status, &blank["email"]), (400, &json!(["This field may not be blank."])));
        assert_eq!(blank["password"][0], "Password is too weak");
        let account = json!({ "email": "User@example.com", "password": PASSWORD });
        let taken = json!({ "email": ["A user with this email already exists."] });
        assert_eq!(post("/api/auth/register/", account).await, (400, taken));
        let missing = json!({ "email": ["This field is required."], "password": ["This field is required."] });
        assert_eq!(post("/api/auth/register/", json!({})).await, (422, missing));

        let refused = json!({
            "error": "Invalid credentials", "detail": "No active account found with the given credentials",
        });
        for _ in 0..5 {
            assert_eq!(post("/api/auth/login/", login("wrong")).await, (401, refused.clone()));
        }
        let throttled = json!({ "error": "Request throttled. Retry after 15 minutes" });
        assert_eq!(post("/api/auth/login/", login("wrong")).await, (429, throttled));
        let nobody = json!({ "email": "nobody@example.com", "password": PASSWORD });
        assert_eq!(post("/api/auth/login/", nobody).await, (404, json!({ "error": "User not found" })));
        let forbidden = json!({ "error": "You don't have permission to perform this action" });
        assert_eq!(
            post("/api/users/", json!({ "email": "x@example.com", "password": PASSWORD })).await,
            (403, forbidden)
        );
        service.stop().await;
    }
}
