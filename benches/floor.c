/* The floor: the least that a client can do, written by hand, for pglock to be measured against.
 *
 * It sends the start of the session and the lock's message in one write, starts the job, gives the lock back and says
 * goodbye in one write, and ends as the job did. It asks nothing of the server, watches over nothing, forwards nothing:
 * whoever uses it gets locks through poolers and on standbys that protect nothing, and jobs that nobody stops.
 *
 *   floor try HOST PORT KEY [JOB...]   one try; where somebody else has the lock, it names the holder and ends with 75
 *   floor prove HOST PORT KEY JOB...   one try, and the job starts only if the lock's row is in pg_locks; else as `try`
 *   floor wait HOST PORT KEY JOB...    waits in the server's queue
 *   floor wait-prove HOST PORT KEY JOB...   does both
 *   floor stamp                        prints the monotonic clock in ns, as a job that tells when it has begun
 *   floor last                         reads its standard input to the end, and prints the clock then
 *   floor hello                        prints a line: what starting a process costs
 *
 * HOST is a numeric address, or the folder of a Unix socket. The user is postgres, and is let in without being asked.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static int sock;
static char in[65536];
static int filled, taken;

static void die(const char *what)
{
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(69);
}

static unsigned number(const char *p)
{
    return (unsigned char)p[0] << 24 | (unsigned char)p[1] << 16 | (unsigned char)p[2] << 8 | (unsigned char)p[3];
}

/* The next message: its type; its body is at *body. */
static char next(char **body)
{
    memmove(in, in + taken, filled - taken);
    filled -= taken;
    taken = 0;
    while (filled < 5 || filled < (int)number(in + 1) + 1) {
        int count = read(sock, in + filled, sizeof in - filled);
        if (count <= 0)
            die("the server has closed the connection");
        filled += count;
    }
    taken = number(in + 1) + 1;
    *body = in + 5;
    if (in[0] == 'E' || (in[0] == 'R' && number(in + 5) != 0)) {
        errno = EPROTO;
        die("the server says no");
    }
    return in[0];
}

/* Whether all rows of one answer, so many at least, begin with true; the first value of the last is copied to `value`. */
static int answered(int rows, char *value, int size)
{
    char *body, type;
    int is_true = 1;
    value[0] = 0;
    while ((type = next(&body)) != 'Z')
        if (type == 'D') {
            snprintf(value, size, "%.*s", (int)number(body + 2), body + 6);
            is_true &= value[0] == 't';
            rows--;
        }
    return is_true && rows <= 0;
}

static int query(char *out, const char *sql)
{
    int length = strlen(sql) + 5;
    out[0] = 'Q';
    for (int n = 0; n < 4; n++)
        out[1 + n] = length >> (24 - 8 * n);
    strcpy(out + 5, sql);
    return length + 1;
}

static void dial(const char *host, const char *port)
{
    if (host[0] == '/') {
        struct sockaddr_un to = {.sun_family = AF_UNIX};
        snprintf(to.sun_path, sizeof to.sun_path, "%s/.s.PGSQL.%s", host, port);
        sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(sock, (void *)&to, sizeof to))
            die("connect");
        return;
    }
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    int on = 1;
    inet_pton(AF_INET, host, &to.sin_addr);
    sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(sock, (void *)&to, sizeof to))
        die("connect");
}

static void stamp(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    printf("%lld\n", now.tv_sec * 1000000000LL + now.tv_nsec);
}

/* The condition for the rows of a key. */
static const char *row(const char *key)
{
    static char sql[512];
    snprintf(sql, sizeof sql,
             "locktype = 'advisory' AND granted AND objsubid = 1 AND classid = ((%s::bigint >> 32) & 4294967295)::oid AND "
             "objid = (%s::bigint & 4294967295)::oid",
             key, key);
    return sql;
}

static int locked(int waits, int proves, const char *key, char **job)
{
    static const char start[] = "\0\0\0\51\0\3\0\0user\0postgres\0database\0postgres\0";
    char out[4096], sql[1024], value[256];
    int length = sizeof start;
    memcpy(out, start, length);
    out[3] = length;
    int end = snprintf(sql, sizeof sql,
                       waits ? "SELECT true FROM (SELECT pg_advisory_lock(%s)) AS l" : "SELECT pg_try_advisory_lock(%s)", key);
    if (proves)
        snprintf(sql + end, sizeof sql - end, "; SELECT true FROM pg_locks WHERE pid = pg_backend_pid() AND %s", row(key));
    length += query(out + length, sql);
    if (write(sock, out, length) != length)
        die("write");
    answered(0, value, sizeof value);
    if (!answered(1 + proves, value, sizeof value)) {
        snprintf(sql, sizeof sql,
                 "SELECT application_name || ' ' || l.pid FROM pg_locks l, pg_stat_get_activity(l.pid) WHERE %s", row(key));
        length = query(out, sql);
        if (write(sock, out, length) != length)
            die("write");
        answered(1, value, sizeof value);
        fprintf(stderr, "floor: held by %s\n", value);
        return 75;
    }
    pid_t pid;
    int status;
    if ((errno = posix_spawnp(&pid, job[0], NULL, NULL, job, environ)))
        die("posix_spawnp");
    waitpid(pid, &status, 0);
    snprintf(sql, sizeof sql, "SELECT pg_advisory_unlock(%s)", key);
    length = query(out, sql);
    memcpy(out + length, "X\0\0\0\4", 5);
    if (write(sock, out, length + 5) != length + 5)
        die("write");
    answered(1, value, sizeof value);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int count, char **argument)
{
    const char *what = count > 1 ? argument[1] : "";
    char byte;
    if (!strcmp(what, "hello"))
        puts("hello");
    else if (!strcmp(what, "stamp"))
        stamp();
    else if (!strcmp(what, "last")) {
        while (read(0, &byte, 1) > 0)
            ;
        stamp();
    } else if (count > 5) {
        int waits = !strncmp(what, "wait", 4), proves = strstr(what, "prove") != NULL;
        dial(argument[2], argument[3]);
        return locked(waits, proves, argument[4], argument + 5);
    } else
        return 64;
    return 0;
}
