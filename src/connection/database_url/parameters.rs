//! The parameters of other tools in one table, and what each means to pglock.
//!
//! The names are those of the tools' documentation and source. A parameter that is not here is refused: it could be a
//! misspelled one about TLS, or choose another server.

use super::super::parameter::{PARAMETERS, normalized};
use Meaning::{Alias, Choice, Refused, Tls};
use Tool::{Asyncpg, Django, Ecto, Jdbc, LibPq, NodePostgres, Npgsql, Pgx, Prisma, Rails, Sqlalchemy, Sqlx};

/// A library, or the framework that passes the parameter on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tool {
    /// asyncpg, also below SQLAlchemy.
    Asyncpg,
    /// Django, with dj-database-url or django-environ.
    Django,
    /// Ecto, with Postgrex.
    Ecto,
    /// pgjdbc.
    Jdbc,
    /// Go's lib/pq.
    LibPq,
    /// node-postgres.
    NodePostgres,
    /// Npgsql.
    Npgsql,
    /// Go's pgx and pgxpool.
    Pgx,
    /// Prisma's own engine.
    Prisma,
    /// Rails, with the pg gem.
    Rails,
    /// SQLAlchemy, with psycopg or asyncpg, and what wraps it.
    Sqlalchemy,
    /// Rust's sqlx.
    Sqlx,
}

/// Whose meaning a parameter has where tools differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// pgjdbc's.
    Jdbc,
    /// That of all others.
    Other,
}

/// What a parameter means to pglock.
#[derive(Clone, Copy, Debug)]
pub(super) enum Meaning {
    /// It does not concern a lock.
    NoEffect,
    /// It is this parameter of libpq under another name.
    Alias(&'static str),
    /// It is this parameter of libpq, with other names for its values.
    Choice(&'static str, &'static [(&'static str, &'static str)]),
    /// It says something about TLS.
    Tls(TlsParameter),
    /// pglock cannot do what it asks for.
    Refused {
        /// The values that ask for nothing.
        unless: &'static [&'static str],
        /// The rest of the sentence after "is not supported".
        detail: &'static str,
    },
}

/// The parameters about TLS whose meaning depends on others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlsParameter {
    /// `sslmode`, which all have; node-postgres with `no-verify`.
    SslMode,
    /// `ssl`: a switch, in asyncpg a mode, and in pgjdbc one that verifies.
    Ssl,
    /// libpq's old `requiressl`.
    RequireSsl,
    /// Prisma's `sslaccept`.
    SslAccept,
    /// `sslcert`: the client's certificate, but the server's root certificate in Prisma.
    SslCert,
    /// pgjdbc's `sslfactory`.
    SslFactory,
    /// Npgsql's `Trust Server Certificate`.
    TrustServerCertificate,
}

/// What the table says about a parameter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed {
    /// What it means.
    pub meaning: Meaning,
    /// No other tool than Prisma has it.
    pub is_only_of_prisma: bool,
}

/// The values that switch a parameter off.
const NOT: &[&str] = &["false", "0", "off", "no"];
const NO_JAVA: &str = " (pglock cannot load Java classes)";
const LOWER_CASE_LEVELS: &[(&str, &str)] = &[("disable", "disable"), ("prefer", "prefer"), ("require", "require")];
/// pgjdbc's `allow` uses GSSAPI only if the server insists, which none does.
const GSS_MODES: &[(&str, &str)] = &[
    ("disable", "disable"),
    ("allow", "disable"),
    ("prefer", "prefer"),
    ("require", "require"),
];
/// Both tools take a server that accepts writes for the primary. Without one, `preferPrimary` takes a standby, which
/// has no locks.
const SERVER_TYPES: &[(&str, &str)] = &[
    ("any", "any"),
    ("primary", "read-write"),
    ("master", "read-write"),
    ("read-write", "read-write"),
    ("preferPrimary", "read-write"),
    ("prefer-primary", "read-write"),
    ("read-only", "read-only"),
    ("secondary", "standby"),
    ("slave", "standby"),
    ("standby", "standby"),
    ("preferSecondary", "prefer-standby"),
    ("preferSlave", "prefer-standby"),
    ("prefer-standby", "prefer-standby"),
];

/// What has an effect, and is not libpq's or means more than in libpq.
const EFFECTIVE: &[(&str, &[Tool], Meaning)] = &[
    (
        "sslmode",
        &[
            Asyncpg,
            Django,
            Jdbc,
            LibPq,
            NodePostgres,
            Npgsql,
            Pgx,
            Prisma,
            Rails,
            Sqlalchemy,
            Sqlx,
        ],
        Tls(TlsParameter::SslMode),
    ),
    (
        "ssl",
        &[Asyncpg, Ecto, Jdbc, NodePostgres, Npgsql],
        Tls(TlsParameter::Ssl),
    ),
    ("requiressl", &[Pgx, Rails], Tls(TlsParameter::RequireSsl)),
    ("sslaccept", &[Prisma], Tls(TlsParameter::SslAccept)),
    (
        "sslcert",
        &[Asyncpg, Jdbc, LibPq, NodePostgres, Pgx, Prisma, Sqlx],
        Tls(TlsParameter::SslCert),
    ),
    ("SSL Certificate", &[Npgsql], Alias("sslcert")),
    ("ssl-root-cert", &[Sqlx], Alias("sslrootcert")),
    ("ssl-ca", &[Sqlx], Alias("sslrootcert")),
    ("Root Certificate", &[Npgsql], Alias("sslrootcert")),
    ("sslfactory", &[Jdbc], Tls(TlsParameter::SslFactory)),
    (
        "Trust Server Certificate",
        &[Npgsql],
        Tls(TlsParameter::TrustServerCertificate),
    ),
    (
        "sslNegotiation",
        &[Jdbc, Npgsql],
        Choice("sslnegotiation", &[("postgres", "postgres"), ("direct", "direct")]),
    ),
    (
        "channelBinding",
        &[Jdbc, Npgsql],
        Choice("channel_binding", LOWER_CASE_LEVELS),
    ),
    ("gssEncMode", &[Jdbc], Choice("gssencmode", GSS_MODES)),
    ("GSS Encryption Mode", &[Npgsql], Choice("gssencmode", GSS_MODES)),
    (
        "targetServerType",
        &[Jdbc],
        Choice("target_session_attrs", SERVER_TYPES),
    ),
    (
        "Target Session Attributes",
        &[Npgsql],
        Choice("target_session_attrs", SERVER_TYPES),
    ),
    (
        "loadBalanceHosts",
        &[Jdbc, Npgsql],
        Choice("load_balance_hosts", &[("true", "random"), ("false", "disable")]),
    ),
    ("database", &[Asyncpg, Npgsql], Alias("dbname")),
    ("DB", &[Npgsql], Alias("dbname")),
    ("Server", &[Npgsql], Alias("host")),
    ("Username", &[Npgsql, Rails], Alias("user")),
    ("User ID", &[Npgsql], Alias("user")),
    ("UID", &[Npgsql], Alias("user")),
    ("PWD", &[Npgsql], Alias("password")),
    ("PSW", &[Npgsql], Alias("password")),
    (
        "sslidentity",
        &[Prisma],
        Refused {
            unless: &[],
            detail: " (a PKCS12 file); use sslcert and sslkey, in PEM form",
        },
    ),
    (
        "sslinline",
        &[LibPq],
        Refused {
            unless: NOT,
            detail: " (certificates within the URL); use files",
        },
    ),
    (
        "direct_tls",
        &[Asyncpg],
        Refused {
            unless: NOT,
            detail: "; use sslnegotiation=direct",
        },
    ),
    (
        "sslhostnameverifier",
        &[Jdbc],
        Refused {
            unless: &[],
            detail: NO_JAVA,
        },
    ),
    (
        "sslfactoryarg",
        &[Jdbc],
        Refused {
            unless: &[],
            detail: NO_JAVA,
        },
    ),
    (
        "socketFactory",
        &[Jdbc],
        Refused {
            unless: &[],
            detail: NO_JAVA,
        },
    ),
    (
        "socketFactoryArg",
        &[Jdbc],
        Refused {
            unless: &[],
            detail: NO_JAVA,
        },
    ),
    (
        "authenticationPluginClassName",
        &[Jdbc],
        Refused {
            unless: &[],
            detail: NO_JAVA,
        },
    ),
    (
        "Check Certificate Revocation",
        &[Npgsql],
        Refused {
            unless: NOT,
            detail: "; name a list with sslcrl",
        },
    ),
    (
        "Integrated Security",
        &[Npgsql],
        Refused {
            unless: NOT,
            detail: " (no Kerberos)",
        },
    ),
];

/// What does not concern a lock: the names that a tool has. `name[]` stands for `name[anything]`.
const NO_EFFECT: &[(&[Tool], &str)] = &[
    (
        &[Asyncpg],
        "command_timeout max_cacheable_statement_size max_cached_statement_lifetime \
         max_inactive_connection_lifetime max_queries max_size min_size statement_cache_size timeout",
    ),
    (
        &[Django],
        "atomic_requests autocommit conn_health_checks conn_max_age currentSchema disable_server_side_cursors \
         isolation_level pool server_side_binding time_zone",
    ),
    (
        &[Ecto],
        "idle_interval log migration_lock ownership_timeout pool pool_count pool_size prepare priv queue_interval \
         queue_target show_sensitive_data_on_connection_error timeout",
    ),
    (
        &[Jdbc],
        "adaptiveFetch adaptiveFetchMaximum adaptiveFetchMinimum allowEncodingChanges assumeMinServerVersion \
         autosave binaryTransfer binaryTransferDisable binaryTransferEnable cancelSignalTimeout cleanupSavepoints \
         currentSchema databaseMetadataCacheFields databaseMetadataCacheFieldsMiB defaultRowFetchSize \
         disableColumnSanitiser escapeSyntaxCallMode groupStartupParameters gssResponseTimeout \
         hideUnprivilegedObjects hostRecheckSeconds jaasApplicationName jaasLogin kerberosServerName \
         localSocketAddress logger loggerFile loggerLevel loginTimeout logServerErrorDetail \
         logUnclosedConnections maxResultBuffer maxSendBufferSize preferQueryMode preparedStatementCacheQueries \
         preparedStatementCacheSizeMiB prepareThreshold protocolVersion quoteReturningIdentifiers readOnly \
         readOnlyMode receiveBufferSize reWriteBatchedInserts sendBufferSize socketTimeout sslPasswordCallback \
         sslResponseTimeout sspiServiceClass stringtype tcpKeepAlive tcpNoDelay unknownLength useSpnego \
         xmlFactoryFactory",
    ),
    (&[LibPq], "binary_parameters disable_prepared_binary_result krbspn"),
    (
        &[NodePostgres],
        "allowExitOnIdle binary connectionTimeoutMillis enableChannelBinding encoding idleTimeoutMillis keepAlive \
         keepAliveInitialDelayMillis max maxLifetimeSeconds maxUses min query_timeout uselibpqcompat",
    ),
    (
        &[Npgsql],
        "ArrayNullabilityMode AutoPrepareMinUsages CancellationTimeout CommandTimeout ConnectionIdleLifetime \
         ConnectionLifetime ConnectionPruningInterval EFAdminDatabase EFTemplateDatabase Encoding Enlist \
         HostRecheckSeconds IncludeErrorDetail IncludeFailedBatchedCommand IncludeRealm InternalCommandTimeout \
         Keepalive KerberosServiceName LoadTableComposites LogParameters MaxAutoPrepare MaximumPoolSize \
         MaxPoolSize MinimumPoolSize MinPoolSize Multiplexing NoResetOnClose PersistSecurityInfo Pooling \
         ReadBufferSize ServerCompatibilityMode SocketReceiveBufferSize SocketSendBufferSize TcpKeepalive \
         TcpKeepaliveInterval TcpKeepaliveTime Timeout UsePerfCounters WriteBufferSize \
         WriteCoalescingBufferThresholdBytes",
    ),
    (
        &[Pgx],
        "connect_recover_timeout default_query_exec_mode description_cache_capacity krbspn min_read_buffer_size \
         pool_health_check_period pool_max_conn_idle_time pool_max_conn_lifetime pool_max_conn_lifetime_jitter \
         pool_max_conns pool_min_conns pool_min_idle_conns pool_ping_timeout prefer_simple_protocol \
         statement_cache_capacity statement_cache_mode",
    ),
    (
        &[Prisma],
        "connection_limit max_connection_lifetime max_idle_connection_lifetime pgbouncer pool_timeout schema \
         socket_timeout statement_cache_size",
    ),
    (
        &[Rails],
        "adapter advisory_locks checkout_timeout collation connection_retries ctype database_tasks \
         dead_connection_timeout encoding idle_timeout insert_returning keepalive max_age max_connections \
         max_queue max_threads migrations_paths min_connections min_messages min_threads pool pool_jitter \
         prepared_statements query_cache reaping_frequency reconnect replica retry_deadline schema_cache_path \
         schema_dump schema_search_path statement_limit template use_metadata_table variables[]",
    ),
    (
        &[Sqlalchemy],
        "async_fallback echo executemany_mode isolation_level max_overflow max_size min_size pool_pre_ping \
         pool_recycle pool_size pool_timeout pool_use_lifo prepare_threshold prepared_statement_cache_size \
         prepared_statement_name_func use_native_hstore use_native_unicode",
    ),
    (&[Sqlx], "options[] statement-cache-capacity"),
    // Settings of the session, which these pass on to the server.
    (
        &[Asyncpg, LibPq, NodePostgres, Npgsql, Pgx],
        "client_min_messages datestyle default_transaction_isolation default_transaction_read_only \
         extra_float_digits idle_in_transaction_session_timeout idle_session_timeout intervalstyle jit \
         lock_timeout search_path statement_timeout synchronous_commit timezone transaction_timeout work_mem",
    ),
];

/// Finds a parameter. Case and punctuation do not count: Npgsql's `SSL Mode` is `sslmode`, and so is `ssl-mode`.
pub(super) fn find(name: &str) -> Option<Listed> {
    let wanted = comparable(name);
    let effective = EFFECTIVE.iter().find(|(name, ..)| comparable(name) == wanted);
    if let Some((_, tools, meaning)) = effective {
        return Some(Listed {
            meaning: *meaning,
            is_only_of_prisma: *tools == [Prisma],
        });
    }
    let has_name = |(_, names): &&(&[Tool], &str)| names.split_whitespace().any(|name| comparable(name) == wanted);
    let mut lists = NO_EFFECT.iter().filter(has_name).peekable();
    lists.peek()?;
    Some(Listed {
        meaning: Meaning::NoEffect,
        is_only_of_prisma: lists.all(|(tools, _)| *tools == [Prisma]),
    })
}

/// Returns whether libpq or any of the tools has a parameter of this name, in any spelling.
pub(super) fn is_known(name: &str) -> bool {
    let wanted = normalized(name);
    find(name).is_some() || PARAMETERS.iter().any(|(libpq, _)| normalized(libpq) == wanted)
}

/// Returns the names, for suggestions.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let effective = EFFECTIVE.iter().map(|(name, ..)| *name);
    effective.chain(NO_EFFECT.iter().flat_map(|(_, names)| names.split_whitespace()))
}

/// Returns what two spellings of a name have in common.
fn comparable(name: &str) -> String {
    match name.split_once('[') {
        Some((start, rest)) if rest.ends_with(']') => normalized(start) + "[]",
        _ => normalized(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_parameter_hides_one_of_libpq() {
        let libpq: BTreeSet<String> = PARAMETERS.iter().map(|(name, _)| normalized(name)).collect();
        for (_, names) in NO_EFFECT {
            for name in names.split_whitespace() {
                assert!(!libpq.contains(&comparable(name)), "{name} has an effect in libpq");
                let is_effective = EFFECTIVE
                    .iter()
                    .any(|(other, ..)| comparable(other) == comparable(name));
                assert!(!is_effective, "{name} is listed twice");
            }
        }
    }

    #[test]
    fn each_parameter_with_an_effect_is_listed_once_and_leads_to_one_of_libpq() {
        let mut seen = BTreeSet::new();
        for (name, _, meaning) in EFFECTIVE {
            assert!(seen.insert(comparable(name)), "{name} is listed twice");
            if let Alias(libpq) | Choice(libpq, _) = meaning {
                assert!(PARAMETERS.iter().any(|(name, _)| name == libpq), "{name}");
            }
        }
    }

    #[test]
    fn parameters_of_prisma_alone_are_told_from_those_that_others_have_too() {
        let is_only_of_prisma = |name| find(name).is_some_and(|listed| listed.is_only_of_prisma);
        assert!(is_only_of_prisma("schema") && is_only_of_prisma("sslaccept"));
        assert!(!is_only_of_prisma("pool_timeout") && !is_only_of_prisma("sslcert") && !is_only_of_prisma("x"));
    }
}
