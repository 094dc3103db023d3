//! Several statements that are one transaction in one round trip: a change that is made often waits for its database once, and keeps
//! its locks for no longer than that.
//!
//! On PostgreSQL they become one statement, each a part of its `WITH`. On SQLite they are sent as one text, from BEGIN to COMMIT.

use sea_orm::{
    ActiveModelTrait, ActiveValue, ColumnTrait, ConnectionTrait, DbBackend, EntityName, EntityTrait, ExprTrait,
    FromQueryResult, IdenStatic, Iterable, QueryResult, Statement, StatementBuilder, Values,
    sea_query::{
        Alias, CommonTableExpression, DynIden, Expr, InsertStatement, IntoIden, JoinType, OnConflict,
        PostgresQueryBuilder, Query, ReturningClause, SelectStatement, SqliteQueryBuilder, TableRef, UpdateStatement,
        WithClause,
    },
};

use tokio::time::Instant;

use super::Db;
use crate::error::{Error, Result};

/// Statements in their order, each with a name of its own. Each returns one row at most.
pub struct Script {
    backend: DbBackend,
    steps: Vec<Step>,
}

struct Step {
    name: &'static str,
    work: Work,
    /// What it returns, if anything.
    columns: Vec<&'static str>,
}

enum Work {
    Update(UpdateStatement),
    Select(SelectStatement),
    Insert(InsertStatement),
}

/// What the steps of a script returned.
pub struct Returned(Vec<QueryResult>);

impl Script {
    pub fn new(db: &Db) -> Self {
        Self { backend: db.writer.get_database_backend(), steps: Vec::new() }
    }

    /// Changes a row, and returns it as it is then.
    pub fn update<E: EntityTrait>(&mut self, name: &'static str, _: E, statement: UpdateStatement) {
        self.steps.push(Step { name, work: Work::Update(statement), columns: columns::<E>() });
    }

    /// Reads a row of `E`.
    pub fn select<E: EntityTrait>(&mut self, name: &'static str, _: E, mut statement: SelectStatement) {
        statement.clear_selects();
        self.steps.push(Step { name, work: Work::Select(statement), columns: columns::<E>() });
    }

    /// Puts in what `statement` selects.
    pub fn insert(&mut self, name: &'static str, statement: InsertStatement) {
        self.steps.push(Step { name, work: Work::Insert(statement), columns: Vec::new() });
    }

    /// Puts in a row if there is one in this table for which this holds.
    ///
    /// # Errors
    /// `Internal` if the row can't be put in so.
    pub fn insert_if<A: ActiveModelTrait>(
        &mut self,
        (table, condition): &(TableRef, Expr),
        name: &'static str,
        row: &A,
        conflict: Option<OnConflict>,
    ) -> Result<()> {
        let (columns, row) = columns_and_values(row);
        let mut values = Query::select();
        values.exprs(row);
        values.from(table.clone()).and_where(condition.clone());
        let mut insert = Query::insert();
        insert.into_table(A::Entity::default().table_ref()).columns(columns);
        insert.select_from(values).map_err(Error::internal)?;
        if let Some(conflict) = conflict {
            insert.on_conflict(conflict);
        }
        self.insert(name, insert);
        Ok(())
    }

    /// Where a later step finds what the step `name` wrote to `table`. In the table itself PostgreSQL shows it the rows as they were
    /// before all steps. SQLite shows it all of the table, so the row has to be named there again.
    pub fn written<E: EntityTrait>(&self, name: &'static str, table: E) -> TableRef {
        if self.backend == DbBackend::Sqlite { table.table_ref() } else { Alias::new(name).into_iden().into() }
    }
}

impl Returned {
    /// The row that the step of this name returned. Without one of the first that returns rows PostgreSQL knows none of the others.
    ///
    /// # Errors
    /// `Internal` if it is not such a row.
    pub fn row<M: FromQueryResult>(&self, name: &'static str) -> Result<Option<M>> {
        let prefix = format!("{name}_");
        let is_its_own = |row: &&QueryResult| {
            row.column_names().iter().any(|column| column.starts_with(&prefix))
                && row.try_get::<bool>("", &outer(name, IS_THERE)).unwrap_or(true)
        };
        Ok(self.0.iter().find(is_its_own).map(|row| M::from_query_result(row, &prefix)).transpose()?)
    }
}

impl Db {
    /// Runs a script: all of it or nothing.
    ///
    /// # Errors
    /// `Unavailable` if its turn or a connection doesn't come in time, or the store is away. In that case nobody knows whether the
    /// changes are kept.
    pub async fn run(&self, script: Script) -> Result<Returned> {
        let Script { backend, steps } = script;
        let (sql, values) = if backend == DbBackend::Sqlite { text(&steps) } else { one_statement(steps) };
        let asked_at = Instant::now();
        let begun = || self.metrics.waited.observe(asked_at.elapsed().as_secs_f64());
        Ok(Returned(self.writer.run_whole(sql, values, begun).await?))
    }
}

/// Of what PostgreSQL returns in one row: whether that of a step is part of it.
const IS_THERE: &str = "is_there";

fn columns<E: EntityTrait>() -> Vec<&'static str> {
    E::Column::iter().map(|column| column.as_str()).collect()
}

/// What the columns of a step are called in the end: those of two tables may have one name.
fn outer(name: &str, column: &str) -> String {
    format!("{name}_{column}")
}

fn one_statement(steps: Vec<Step>) -> (String, Values) {
    let mut with = WithClause::new();
    let (mut all, mut is_first) = (Query::select(), true);
    for Step { name, work, columns } in steps {
        let of_step = columns.iter().map(|column| Alias::new(*column));
        let mut part = CommonTableExpression::new();
        match work {
            Work::Update(mut update) => {
                update.returning(ReturningClause::Columns(of_step.map(Into::into).collect()));
                part.query(update)
            }
            Work::Select(mut select) => part.query(select.columns(of_step).take()),
            Work::Insert(insert) => part.query(insert),
        };
        part.table_name(Alias::new(name));
        with.cte(part);
        if columns.is_empty() {
            continue;
        }
        // The first column is of the key.
        let key = Expr::col((Alias::new(name), Alias::new(columns[0])));
        all.expr_as(key.is_not_null(), Alias::new(outer(name, IS_THERE)));
        if is_first {
            all.from(Alias::new(name));
        } else {
            all.join(JoinType::LeftJoin, Alias::new(name), Expr::val(true));
        }
        is_first = false;
        for column in columns {
            all.expr_as(Expr::col((Alias::new(name), Alias::new(column))), Alias::new(outer(name, column)));
        }
    }
    with.query(all).build(PostgresQueryBuilder)
}

fn text(steps: &[Step]) -> (String, Values) {
    let mut parts = vec!["BEGIN IMMEDIATE".to_owned()];
    let mut values = Vec::new();
    for Step { name, work, columns } in steps {
        let (sql, of_step) = match work {
            Work::Update(update) => {
                let (sql, values) = update.build(SqliteQueryBuilder);
                let returning: Vec<_> =
                    columns.iter().map(|column| format!(r#""{column}" AS "{}""#, outer(name, column))).collect();
                (format!("{sql} RETURNING {}", returning.join(", ")), values)
            }
            Work::Select(select) => {
                let mut select = select.clone();
                for column in columns {
                    select.expr_as(Expr::col(Alias::new(*column)), Alias::new(outer(name, column)));
                }
                select.build(SqliteQueryBuilder)
            }
            Work::Insert(insert) => insert.build(SqliteQueryBuilder),
        };
        parts.push(sql);
        values.extend(of_step.0);
    }
    parts.push("COMMIT".to_owned());
    (parts.join("; "), Values(values))
}

/// Rows to be put in together. Those of one table get their ids in the order in which they were added.
#[derive(Default)]
pub struct Inserts(Vec<OfTable>);

struct OfTable {
    table: TableRef,
    columns: Vec<DynIden>,
    rows: Vec<Vec<Expr>>,
    conflict: Option<OnConflict>,
}

impl Inserts {
    pub fn add<A: ActiveModelTrait>(&mut self, row: &A) {
        self.add_or(row, None);
    }

    /// `conflict`: what becomes of a row that is there already.
    pub fn add_or<A: ActiveModelTrait>(&mut self, row: &A, conflict: Option<OnConflict>) {
        let (columns, values) = columns_and_values(row);
        self.merge(OfTable { table: A::Entity::default().table_ref(), columns, rows: vec![values], conflict });
    }

    pub fn extend(&mut self, others: Self) {
        others.0.into_iter().for_each(|others| self.merge(others));
    }

    fn merge(&mut self, new: OfTable) {
        let alike =
            |of: &&mut OfTable| of.table == new.table && of.columns == new.columns && of.conflict == new.conflict;
        match self.0.iter_mut().find(alike) {
            Some(alike) => alike.rows.extend(new.rows),
            None => self.0.push(new),
        }
    }

    /// One statement; or several, where there are more values than one can have.
    pub(super) fn statements(self, backend: DbBackend) -> Vec<Statement> {
        let mut batches: Vec<Vec<(TableRef, InsertStatement)>> = Vec::new();
        for OfTable { table, columns, rows, conflict } in self.0 {
            for rows in rows.chunks(VALUES_AT_ONCE / columns.len().max(1)) {
                let mut insert = Query::insert();
                insert.into_table(table.clone()).columns(columns.clone());
                for row in rows {
                    insert.values_panic(row.iter().cloned());
                }
                if let Some(conflict) = &conflict {
                    insert.on_conflict(conflict.clone());
                }
                // PostgreSQL has an order of its own for the parts of a statement: of one table there is one part.
                match batches.last_mut() {
                    Some(batch) if batch.len() < INSERTS_AT_ONCE && batch.iter().all(|(other, _)| *other != table) => {
                        batch.push((table.clone(), insert));
                    }
                    _ => batches.push(vec![(table.clone(), insert)]),
                }
            }
        }
        let inserts = |batch: Vec<(_, _)>| batch.into_iter().map(|(_, insert)| insert).collect::<Vec<_>>();
        batches.into_iter().map(|batch| together(backend, &inserts(batch))).collect()
    }
}

/// How many values an insert has at most, and how many inserts are one statement: 32,766 values on SQLite, where each insert counts for
/// itself, and 65,535 on PostgreSQL.
const VALUES_AT_ONCE: usize = 8000;
const INSERTS_AT_ONCE: usize = 8;

fn together(backend: DbBackend, inserts: &[InsertStatement]) -> Statement {
    let (sql, values) = if let [insert] = inserts {
        return StatementBuilder::build(insert, &backend);
    } else if backend == DbBackend::Sqlite {
        let (texts, values): (Vec<_>, Vec<_>) = inserts.iter().map(|insert| insert.build(SqliteQueryBuilder)).unzip();
        (texts.join("; "), Values(values.into_iter().flat_map(|values| values.0).collect()))
    } else {
        let mut with = WithClause::new();
        for (n, insert) in inserts.iter().enumerate() {
            let mut part = CommonTableExpression::new();
            part.query(insert.clone()).table_name(Alias::new(format!("rows_{n}")));
            with.cte(part);
        }
        with.query(Query::select().expr(Expr::val(1)).take()).build(PostgresQueryBuilder)
    };
    Statement { sql, values: Some(values), db_backend: backend }
}

/// What is set of a row.
fn columns_and_values<A: ActiveModelTrait>(row: &A) -> (Vec<DynIden>, Vec<Expr>) {
    let set = <A::Entity as EntityTrait>::Column::iter().filter_map(|column| match row.get(column) {
        ActiveValue::Set(value) | ActiveValue::Unchanged(value) => {
            Some((column.into_iden(), column.save_as(Expr::val(value))))
        }
        ActiveValue::NotSet => None,
    });
    set.unzip()
}
