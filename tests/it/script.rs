//! Several statements that are one transaction in one round trip.

use std::time::Duration;

use identity::{
    db::{Db, DbOptions, Inserts, Script},
    entity::{group, permission, user},
};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QueryTrait,
    sea_query::{Expr, Query},
};

use crate::{
    harness::stores::{Store, empty_database},
    migrations::{insert_user, migrated, options, texts},
};

fn group(name: &str) -> group::ActiveModel {
    group::ActiveModel { name: Set(name.to_owned()), ..Default::default() }
}

fn permission(codename: &str) -> permission::ActiveModel {
    let [app_label, codename, name] = ["script", codename, "Of a test"].map(|text| Set(text.to_owned()));
    permission::ActiveModel { app_label, codename, name, ..Default::default() }
}

/// Renames the user, and makes the group only if there is such a user.
fn rename_and_make(db: &Db, email: &str, name: &str) -> Script {
    let mut script = Script::new(db);
    let rename = user::Entity::update_many()
        .col_expr(user::Column::FirstName, Expr::value(name))
        .filter(user::Column::Email.eq(email));
    script.update("person", user::Entity, rename.into_query());
    let renamed = (script.written("person", user::Entity), Expr::col(user::Column::Email).eq(email));
    script.insert_if(&renamed, "made", &group(name), None).unwrap();
    let oldest = Query::select().expr(group::Column::Id.min()).from(group::Entity).take();
    let oldest = group::Entity::find().filter(group::Column::Id.in_subquery(oldest));
    script.select("oldest", group::Entity, oldest.into_query());
    script
}

/// Some tens of milliseconds of counting, on either store.
const SLOWLY_TRUE: &str = "(WITH RECURSIVE count(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM count WHERE n < 200000) \
                           SELECT max(n) FROM count) > 1";

async fn names(db: &Db) -> (Vec<String>, Vec<String>) {
    let users = texts(db.reader(), "SELECT first_name FROM users ORDER BY id").await;
    (users, texts(db.reader(), "SELECT name FROM groups ORDER BY id").await)
}

#[tokio::test]
async fn a_script_changes_all_of_it_and_returns_each_row_under_the_name_of_its_step() {
    for store in Store::all() {
        let (_database, db) = migrated(store).await;
        insert_user(&db, "a@example.com").await;
        let none = db.run(rename_and_make(&db, "nobody@example.com", "Zero")).await.unwrap();
        assert!(none.row::<user::Model>("person").unwrap().is_none(), "{store:?}");
        assert!(names(&db).await.1.is_empty(), "{store:?}: a step went on without the row that it hangs on");

        let first = db.run(rename_and_make(&db, "a@example.com", "One")).await.unwrap();
        assert_eq!(first.row::<user::Model>("person").unwrap().unwrap().first_name, "One");
        let second = db.run(rename_and_make(&db, "a@example.com", "Two")).await.unwrap();
        assert_eq!(second.row::<user::Model>("person").unwrap().unwrap().first_name, "Two");
        assert_eq!(second.row::<group::Model>("oldest").unwrap().unwrap().name, "One");
        assert_eq!(names(&db).await, (vec!["Two".into()], vec!["One".into(), "Two".into()]), "{store:?}");
    }
}

#[tokio::test]
async fn a_script_that_fails_half_way_changes_nothing_and_leaves_nothing_open() {
    for store in Store::all() {
        let (_database, db) = migrated(store).await;
        insert_user(&db, "a@example.com").await;
        db.run(rename_and_make(&db, "a@example.com", "Taken")).await.unwrap();
        for round in 0..5 {
            // The group is there already, and its name is unique.
            db.run(rename_and_make(&db, "a@example.com", "Other")).await.unwrap();
            assert!(db.run(rename_and_make(&db, "a@example.com", "Taken")).await.is_err(), "{store:?}");
            assert_eq!(names(&db).await.0[0], "Other", "{store:?}: half of it stayed");
            let tx = db.begin().await.unwrap();
            group::Entity::delete_many().filter(group::Column::Name.eq("Other")).exec(&tx).await.unwrap();
            tx.commit().await.unwrap();
            insert_user(&db, &format!("kept{round}@example.com")).await;
        }
        assert_eq!(names(&db).await.1, ["Taken"], "{store:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_whose_caller_goes_away_is_done_or_not_and_leaves_nothing_open() {
    for store in Store::all() {
        let database = empty_database(store).await;
        let db = Db::connect(&DbOptions { max_connections: 1, ..options(&database.url) }).await.unwrap();
        db.migrate().await.unwrap();
        insert_user(&db, "a@example.com").await;
        for round in 0..24_u64 {
            let name = format!("Name {round}");
            let mut script = Script::new(&db);
            // It takes its time, so that its caller goes before, within and after it.
            let rename = user::Entity::update_many()
                .col_expr(user::Column::FirstName, Expr::value(name.as_str()))
                .filter(Expr::cust(SLOWLY_TRUE));
            script.update("person", user::Entity, rename.into_query());
            let renamed = (script.written("person", user::Entity), Expr::col(user::Column::FirstName).eq(&name));
            script.insert_if(&renamed, "made", &group(&name), None).unwrap();
            let mut run = Box::pin(db.run(script));
            let goes_after = Duration::from_millis(round * 4);
            let _ = tokio::time::timeout(goes_after, &mut run).await;
            drop(run);
            // The next has its turn: nothing holds the connection, or the lock.
            db.begin().await.unwrap().commit().await.unwrap();
            let (users, groups) = names(&db).await;
            assert_eq!(users[0] == name, groups.contains(&name), "{store:?}: half of it after {goes_after:?}");
        }
    }
}

#[tokio::test]
async fn rows_that_are_put_in_together_get_their_ids_in_their_order() {
    for store in Store::all() {
        let (_database, db) = migrated(store).await;
        let tx = db.begin().await.unwrap();
        let mut rows = Inserts::default();
        for name in ["c", "a", "b"] {
            rows.add(&group(name));
            rows.add(&permission(name));
        }
        tx.insert(rows).await.unwrap();
        tx.commit().await.unwrap();
        let groups = group::Entity::find().order_by_asc(group::Column::Id).all(db.reader()).await.unwrap();
        assert_eq!(groups.iter().map(|group| group.name.as_str()).collect::<Vec<_>>(), ["c", "a", "b"], "{store:?}");
        let permissions =
            texts(db.reader(), "SELECT codename FROM permissions WHERE app_label = 'script' ORDER BY id").await;
        assert_eq!(permissions, ["c", "a", "b"], "{store:?}");
    }
}

#[tokio::test]
async fn more_rows_than_a_statement_can_have_values_for_are_put_in_all_the_same() {
    for store in Store::all() {
        let (_database, db) = migrated(store).await;
        let tx = db.begin().await.unwrap();
        let mut rows = Inserts::default();
        let all: Vec<_> = (0..70_000).map(|n| format!("group {n}")).collect();
        for name in &all {
            rows.add(&group(name));
        }
        tx.insert(rows).await.unwrap();
        tx.commit().await.unwrap();
        assert!(names(&db).await.1 == all, "{store:?}: not all of them, or not in their order");
    }
}
