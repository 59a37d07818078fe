//! `pglock init`: creates the run table, or prints the SQL for it.

use crate::cli::InitOptions;
use crate::commands::session::with_client;
use crate::connection::Settings;
use crate::history::{Setup, SetupResult};
use crate::inspect::server_time::in_full;
use crate::outcome::{Failure, Outcome};
use crate::protocol::name;
use crate::ui::stdout;

/// What the printed SQL begins with.
const SCRIPT_HEADER: &str = "\
    -- The table in which pglock run --record and --once-per record runs, as pglock init creates it. Run this in one\n\
    -- transaction, as with psql --single-transaction.\n";

/// Creates the table and reports what was done, or prints the SQL.
///
/// # Errors
/// The settings are wrong, the connection fails, the table cannot be created, or standard output cannot be written.
pub(crate) fn run(options: &InitOptions) -> Result<Outcome, Failure> {
    let setup = &options.setup;
    let text = if options.print {
        format!("{SCRIPT_HEADER}{}", setup.script())
    } else {
        // To add an index to a large table, or while the table is in use, takes as long as it takes.
        let settings = Settings::from_options(&options.connection)?;
        let result = with_client(&settings, &name::for_init(), |client| {
            setup.carry_out(client.asking("to create the table"))
        })?;
        report(setup, result)
    };
    stdout::print(&text)?;
    Ok(Outcome::Success)
}

/// Returns the sentence that says what there is now.
fn report(setup: &Setup, result: SetupResult) -> String {
    let table = &setup.table;
    let (done, keep) = (
        if result.is_new {
            format!("created table {table}")
        } else {
            format!("table {table} already exists")
        },
        in_full(result.keep),
    );
    let granted = match &setup.roles[..] {
        [] => String::new(),
        roles => format!("; granted to {}", roles.join(", ")),
    };
    // A name can have any character.
    format!("{done}; it keeps runs for {keep}{granted}").replace(char::is_control, " ") + "\n"
}
