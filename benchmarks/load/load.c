/* Many WebSocket clients in one process, for benchmarks: see benchmarks/load/__init__.py.
 *
 * Commands come on stdin, one a line; each is answered by one line of JSON on stdout. Between commands, and
 * while one runs, what the clients are sent is read, and Pings are answered.
 *
 *   target ADDRESS PORT PATH      where clients connect; a user's token is put after PATH
 *   api ADDRESS PORT KEY          where broadcasts are asked for; KEY "-" sends none
 *   users FROM FILE               lines of "USER TOKEN", so many of them skipped; the next to connect is the first
 *                                 of the others
 *   sources COUNT                 connect from 127.0.0.2 and so many addresses after it
 *   beat SECONDS                  each client's heartbeats from now on; 0 for none
 *   connect COUNT AT_ONCE WITHIN TOPIC...
 *                                 the next COUNT users connect and join each TOPIC; "user:" is one's own
 *   join AT_ONCE WITHIN TOPIC     all who are connected join one topic more
 *   roundtrip COUNT SECONDS RATE KIND
 *                                 COUNT clients send a heartbeat or "activity": RATE a second, evenly and in turn;
 *                                 with 0 each again as soon as it is answered
 *   broadcast BURST TIMES SECONDS BYTES TOPIC
 *                                 BURST broadcasts at once, then wait until every client has them all; again
 *                                 until TIMES or SECONDS are over
 *   idle SECONDS                  only read, answer Pings and send heartbeats
 *   quiet SECONDS WITHIN          the same until nothing has come for so long
 *   storm WITHIN                  as phoenix.js: who loses the connection comes back on its schedule, and joins
 *                                 the topics again, until everybody has been lost and is back
 *   close                         all clients go, without a word
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CLIENTS = 100000, MAX_TOPICS = 4, MAX_BURST = 64, MAX_TIMES = 2000000, EVENTS = 1024, BUFFER = 1 << 20 };
enum { OPCODE_TEXT = 1, OPCODE_CLOSE = 8, OPCODE_PING = 9, OPCODE_PONG = 10 };
enum state { ABSENT, CONNECTING, UPGRADING, OPEN };
enum failure { NO_LISTENER, NO_CONNECTION, TURNED_AWAY, BROKEN, TIMED_OUT, JOIN_REFUSED, FAILURES };

static const char *const failure_names[FAILURES] = {
    "no_listener", "no_connection", "turned_away", "broken", "timed_out", "join_refused",
};
/* Of phoenix.js, in seconds. */
static const double reconnect_after[] = {0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 1.0, 2.0};
static const double reconnect_then = 5.0;
static const double rejoin_after[] = {1.0, 2.0, 5.0};
static const double rejoin_then = 10.0;
static const double attempt_within = 20.0;
static const double kept_for = 5.0; /* that a connection to the HTTP API may be idle, in seconds */

struct client {
    int fd;
    uint8_t state;
    uint8_t joined; /* topics */
    uint8_t tries;
    uint8_t refusals;
    uint8_t lost; /* in this storm */
    uint32_t ref;
    uint32_t pending; /* bytes in rest */
    char *rest;       /* of a frame or of the answer to the handshake, not yet complete */
    double since;     /* when what is waited for was begun */
    double due;       /* when to connect or to join again; 0 for never */
};

struct caller { /* a connection to the HTTP API */
    int fd;
    int waiting;
    double answered_at;
    size_t length;
    char answer[4096];
};

static struct client *clients;
static char **names, **tokens;
static int users, present; /* users known; users that have been connected, the first ones */
static struct caller callers[MAX_BURST];
static int epoll_fd, sources = 8;
static struct sockaddr_in target, api;
static char path[256], api_key[256], topics[MAX_TOPICS][64];
static int topic_count;
static char buffer[BUFFER];
static char failed[256];  /* why the command cannot go on */
static char refusal[256]; /* of a join, the last one */
static float *times;     /* of what the command waited for, in seconds */
static int time_count;
static double beat_every, beat_next;
static int beat_at;
static uint64_t random_state = 88172645463325252ull;

static int joined, open_clients, storming, in_roundtrip, is_paced, answered_calls, commanded;
static uint64_t news, frames, bytes, round_trips, attempts, failures[FAILURES];
static double last_event, last_joined;

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static double used(void)
{
    struct timespec at;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static void fail(const char *format, ...)
{
    if (failed[0])
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(failed, sizeof failed, format, arguments);
    va_end(arguments);
}

static double step(const double *schedule, int length, uint8_t *at, double then)
{
    return *at < length ? schedule[(*at)++] : then;
}

static void took(double seconds)
{
    if (time_count < MAX_TIMES)
        times[time_count++] = (float)seconds;
}

/* What clients send. */

static void transmit(struct client *client, int opcode, const char *payload, size_t size)
{
    unsigned char frame[4096];
    size_t head = 2;
    uint32_t key;
    if (size > sizeof frame - 8) {
        fail("a frame of %zu bytes is too long", size);
        return;
    }
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    key = (uint32_t)random_state;
    frame[0] = 0x80 | opcode;
    if (size < 126) {
        frame[1] = 0x80 | size;
    } else {
        frame[1] = 0x80 | 126;
        frame[2] = size >> 8;
        frame[3] = size & 0xff;
        head = 4;
    }
    memcpy(frame + head, &key, 4);
    head += 4;
    for (size_t at = 0; at < size; at++)
        frame[head + at] = payload[at] ^ ((unsigned char *)&key)[at & 3];
    ssize_t sent = send(client->fd, frame, head + size, MSG_NOSIGNAL);
    if (sent != (ssize_t)(head + size) && !storming)
        fail("user %s: a frame could not be sent: %s", names[client - clients], sent < 0 ? strerror(errno) : "short");
}

static void say(struct client *client, const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    transmit(client, OPCODE_TEXT, text, size);
}

static void heartbeat(struct client *client)
{
    say(client, "[null,\"%u\",\"phoenix\",\"heartbeat\",{}]", ++client->ref);
}

static void join(struct client *client)
{
    const char *topic = topics[client->joined];
    int ref = client->joined + 1;
    client->ref = ref;
    client->due = 0;
    say(client, "[\"%d\",\"%d\",\"%s%s\",\"phx_join\",{}]", ref, ref, topic,
        strcmp(topic, "user:") ? "" : names[client - clients]);
}

/* Connections. */

static void watch(int fd, uint32_t events, uint64_t key, int operation)
{
    struct epoll_event event = {.events = events, .data.u64 = key};
    if (epoll_ctl(epoll_fd, operation, fd, &event) < 0)
        fail("epoll_ctl: %s", strerror(errno));
}

static void hang_up(struct client *client)
{
    struct linger at_once = {.l_onoff = 1, .l_linger = 0}; /* no port stays in TIME_WAIT */
    if (client->fd < 0)
        return;
    setsockopt(client->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(client->fd);
    client->fd = -1;
    open_clients -= client->state == OPEN;
    if (client->state == OPEN && topic_count && client->joined >= topic_count)
        joined--;
    client->state = ABSENT;
    client->joined = 0;
    free(client->rest);
    client->rest = NULL;
    client->pending = 0;
}

static void lost(struct client *client, enum failure how)
{
    int was_open = client->state == OPEN;
    hang_up(client);
    if (!storming) {
        fail("user %s lost the connection %s, %.1f s after it was begun: %s", names[client - clients],
             was_open ? "when it was open" : "in its handshake", now() - client->since, failure_names[how]);
        return;
    }
    client->lost = 1;
    if (!was_open)
        failures[how]++;
    client->due = now() + step(reconnect_after, 9, &client->tries, reconnect_then);
}

static void dial(struct client *client)
{
    int number = client - clients, on = 1;
    struct sockaddr_in source = {.sin_family = AF_INET};
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (client->fd < 0) {
        fail("socket: %s", strerror(errno));
        return;
    }
    attempts++;
    client->state = CONNECTING;
    client->joined = 0;
    client->due = 0;
    client->since = now();
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(client->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    source.sin_addr.s_addr = htonl(0x7f000002 + number % sources);
    if (bind(client->fd, (struct sockaddr *)&source, sizeof source) < 0) {
        fail("bind: %s", strerror(errno));
        return;
    }
    if (connect(client->fd, (struct sockaddr *)&target, sizeof target) < 0 && errno != EINPROGRESS) {
        lost(client, errno == ECONNREFUSED ? NO_LISTENER : NO_CONNECTION);
        return;
    }
    watch(client->fd, EPOLLOUT, number, EPOLL_CTL_ADD);
}

static void connected(struct client *client)
{
    int error = 0, number = client - clients;
    socklen_t size = sizeof error;
    char text[4096], address[INET_ADDRSTRLEN];
    getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        lost(client, error == ECONNREFUSED ? NO_LISTENER : NO_CONNECTION);
        return;
    }
    inet_ntop(AF_INET, &target.sin_addr, address, sizeof address);
    int length = snprintf(text, sizeof text,
                          "GET %s%s HTTP/1.1\r\nHost: %s:%d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                          "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
                          path, tokens[number], address, ntohs(target.sin_port));
    client->state = UPGRADING;
    watch(client->fd, EPOLLIN, number, EPOLL_CTL_MOD);
    if (send(client->fd, text, length, MSG_NOSIGNAL) != length)
        lost(client, BROKEN);
}

/* What clients are sent. */

static int has_ref(const char *text, size_t size, uint32_t ref)
{
    char wanted[24];
    const char *comma = memchr(text, ',', size < 24 ? size : 24);
    int length = snprintf(wanted, sizeof wanted, ",\"%u\",", ref);
    return comma && (size_t)(text + size - comma) >= (size_t)length && !memcmp(comma, wanted, length);
}

static void next_round_trip(struct client *client)
{
    client->since = now();
    if (in_roundtrip == 'h')
        heartbeat(client);
    else
        say(client, "[\"1\",\"%u\",\"user:%s\",\"activity\",{}]", ++client->ref, names[client - clients]);
}

static void heard(struct client *client, const char *text, size_t size)
{
    size_t looked = size < 160 ? size : 160;
    frames++;
    if (memmem(text, looked, ",\"news\",", 8)) {
        news++;
    } else if (client->joined < topic_count) {
        if (!has_ref(text, size, client->joined + 1))
            return;
        if (memmem(text, looked, "\"status\":\"error\"", 16)) {
            failures[JOIN_REFUSED]++;
            if (!storming)
                fail("user %s may not join: %.120s", names[client - clients], text);
            snprintf(refusal, sizeof refusal, "%.*s", (int)size, text);
            client->due = now() + step(rejoin_after, 3, &client->refusals, rejoin_then);
            return;
        }
        if (++client->joined < topic_count) {
            join(client);
        } else {
            joined++;
            last_joined = now();
            took(last_joined - client->since);
        }
    } else if (in_roundtrip && has_ref(text, size, client->ref)) {
        if (memmem(text, looked, "\"status\":\"error\"", 16))
            fail("user %s was refused: %.120s", names[client - clients], text);
        took(now() - client->since);
        round_trips++;
        if (!is_paced)
            next_round_trip(client);
    }
}

/* Takes the frames that are complete; gives how many bytes they are. */
static size_t take(struct client *client, const char *data, size_t size)
{
    size_t at = 0;
    while (size - at >= 2) {
        const unsigned char *head = (const unsigned char *)data + at;
        size_t start = 2, length = head[1] & 0x7f;
        if (length >= 126) {
            size_t wide = length == 126 ? 2 : 8;
            if (size - at < start + wide)
                break;
            length = 0;
            for (size_t digit = 0; digit < wide; digit++)
                length = length << 8 | head[start + digit];
            start += wide;
        }
        if (size - at < start + length)
            break;
        const char *payload = data + at + start;
        switch (head[0] & 0x0f) {
        case OPCODE_TEXT:
            heard(client, payload, length);
            break;
        case OPCODE_PING:
            transmit(client, OPCODE_PONG, payload, length);
            break;
        case OPCODE_CLOSE:
            transmit(client, OPCODE_CLOSE, payload, length < 2 ? length : 2);
            break;
        }
        if (client->state != OPEN)
            return size;
        at += start + length;
    }
    return at;
}

static void received(struct client *client, const char *data, size_t size)
{
    size_t taken = 0;
    if (client->state == UPGRADING) {
        const char *end = memmem(data, size, "\r\n\r\n", 4);
        if (end) {
            size_t head = end + 4 - data;
            if (size < 12 || memcmp(data, "HTTP/1.1 101", 12) ||
                !memmem(data, head, "ICX+Yqv66kxgM0FcWaLWlFLwTAI=", 28)) {
                if (!storming)
                    fail("user %s was turned away: %.60s", names[client - clients], data);
                lost(client, TURNED_AWAY);
                return;
            }
            taken = head;
            client->state = OPEN;
            client->tries = client->refusals = 0;
            open_clients++;
            if (topic_count)
                join(client);
            else
                took(now() - client->since);
        }
    }
    if (client->state == OPEN)
        taken += take(client, data + taken, size - taken);
    if (client->state == ABSENT)
        return;
    free(client->rest);
    client->rest = NULL;
    client->pending = size - taken;
    if (client->pending) {
        client->rest = malloc(client->pending);
        memcpy(client->rest, data + taken, client->pending);
    }
}

static void readable(struct client *client)
{
    ssize_t got;
    size_t before = client->pending;
    if (before >= BUFFER / 2) {
        fail("user %s was sent a frame that is too long", names[client - clients]);
        return;
    }
    if (before)
        memcpy(buffer, client->rest, before);
    got = recv(client->fd, buffer + before, BUFFER - before - 1, 0);
    if (got > 0) {
        bytes += got;
        buffer[before + got] = 0;
        received(client, buffer, before + got);
    } else if (got == 0 || errno != EAGAIN) {
        lost(client, BROKEN);
    }
}

/* The HTTP API. */

static void call(struct caller *caller, const char *topic, int size)
{
    char body[8192], text[10240];
    if (size > 4096)
        size = 4096;
    int length = snprintf(body, sizeof body, "{\"topic\":\"%s\",\"event\":\"news\",\"payload\":{\"text\":\"%0*d\"}}",
                          topic, size, 7);
    char address[INET_ADDRSTRLEN], key[300] = "";
    inet_ntop(AF_INET, &api.sin_addr, address, sizeof address);
    if (strcmp(api_key, "-"))
        snprintf(key, sizeof key, "Authorization: Bearer %s\r\n", api_key);
    length = snprintf(text, sizeof text,
                      "POST /api/broadcasts HTTP/1.1\r\nHost: %s:%d\r\n%sContent-Type: application/json\r\n"
                      "Content-Length: %d\r\n\r\n%s",
                      address, ntohs(api.sin_port), key, length, body);
    caller->waiting = 1;
    caller->length = 0;
    if (send(caller->fd, text, length, MSG_NOSIGNAL) != length)
        fail("a broadcast could not be asked for: %s", strerror(errno));
}

static int is_complete(const struct caller *caller)
{
    const char *end = strstr(caller->answer, "\r\n\r\n"), *length;
    if (!end)
        return 0;
    length = strcasestr(caller->answer, "\r\ncontent-length:");
    if (length && length < end)
        return caller->length >= (size_t)(end + 4 - caller->answer) + atoi(length + 17);
    return strstr(end + 4, "\r\n0\r\n\r\n") != NULL || !strncmp(end + 4, "0\r\n\r\n", 5);
}

static void called(struct caller *caller)
{
    size_t room = sizeof caller->answer - 1 - caller->length;
    ssize_t got = recv(caller->fd, caller->answer + caller->length, room, 0);
    if (got <= 0) {
        if (caller->waiting)
            fail("the HTTP API ended the connection");
        close(caller->fd); /* it was idle for long */
        caller->fd = -1;
        return;
    }
    caller->length += got;
    caller->answer[caller->length] = 0;
    if (!caller->waiting || !is_complete(caller))
        return;
    if (strncmp(caller->answer, "HTTP/1.1 2", 10))
        fail("a broadcast was answered %.200s", caller->answer);
    caller->waiting = 0;
    caller->answered_at = now();
    answered_calls++;
}

static void open_callers(int count)
{
    int on = 1;
    for (int number = 0; number < count; number++) {
        struct caller *caller = callers + number;
        if (caller->fd >= 0 && now() - caller->answered_at < kept_for)
            continue;
        if (caller->fd >= 0)
            close(caller->fd); /* before the server does so, in the middle of a call */
        caller->answered_at = now();
        caller->fd = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(caller->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (connect(caller->fd, (struct sockaddr *)&api, sizeof api) < 0) {
            fail("the HTTP API takes no connection: %s", strerror(errno));
            return;
        }
        watch(caller->fd, EPOLLIN, MAX_CLIENTS + number, EPOLL_CTL_ADD);
    }
}

static void close_callers(void)
{
    for (int number = 0; number < MAX_BURST; number++)
        if (callers[number].fd >= 0) {
            close(callers[number].fd);
            callers[number].fd = -1;
        }
}

/* One turn of the loop. */

static void beats(void)
{
    double at = now();
    for (int sent = 0; beat_every > 0 && present && beat_next <= at && sent < 1000; sent++) {
        struct client *client = clients + beat_at++ % present;
        if (client->state == OPEN && client->joined >= topic_count)
            heartbeat(client);
        beat_next += beat_every / present;
    }
}

/* Waits for what comes, at most so many seconds. */
static void turn(double seconds)
{
    static struct epoll_event events[EVENTS];
    if (beat_every > 0 && seconds > 0.002)
        seconds = 0.002;
    if (seconds < 0)
        seconds = 0;
    struct timespec most = {.tv_sec = seconds, .tv_nsec = (seconds - (time_t)seconds) * 1e9};
    int count = epoll_pwait2(epoll_fd, events, EVENTS, &most, NULL);
    for (int number = 0; number < count; number++) {
        uint64_t key = events[number].data.u64;
        if (key == UINT64_MAX)
            commanded = 1;
        else if (key >= MAX_CLIENTS)
            called(callers + (key - MAX_CLIENTS));
        else if (clients[key].state == CONNECTING)
            connected(clients + key);
        else if (clients[key].state != ABSENT)
            readable(clients + key);
    }
    beats();
    if (count > 0)
        last_event = now();
}

/* Commands. */

static int by_size(const void *one, const void *other)
{
    float difference = *(const float *)one - *(const float *)other;
    return (difference > 0) - (difference < 0);
}

static double percentile(double share)
{
    return time_count ? times[(int)(share * (time_count - 1))] * 1e3 : 0;
}

static void quotable(char *text)
{
    for (; *text; text++)
        if (*text == '"' || *text == '\\' || (unsigned char)*text < ' ' || *text == 127)
            *text = '\'';
}

static void answer(uint64_t count, double began, double used_before)
{
    double seconds = now() - began, load = used() - used_before;
    qsort(times, time_count, sizeof *times, by_size);
    quotable(failed);
    quotable(refusal);
    if (failed[0]) {
        printf("{\"error\":\"%s\"}\n", failed);
    } else {
        printf("{\"count\":%lu,\"seconds\":%.6f,\"cpu\":%.6f,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f,"
               "\"frames\":%lu,\"bytes\":%lu,\"joined\":%d,\"attempts\":%lu",
               count, seconds, load, percentile(0.5), percentile(0.99), percentile(1), frames, bytes, joined,
               attempts);
        for (int how = 0; how < FAILURES; how++)
            printf(",\"%s\":%lu", failure_names[how], failures[how]);
        printf(",\"refusal\":\"%s\",\"last_joined_at\":%.6f}\n", refusal, last_joined);
    }
    fflush(stdout);
}

static void connect_users(int count, int at_once, double within)
{
    double deadline = now() + within;
    int first = present, last = present + count, wanted = (topic_count ? joined : open_clients) + count;
    if (last > users) {
        fail("there are %d users, and %d of them have connected", users, present);
        return;
    }
    while (!failed[0] && (topic_count ? joined : open_clients) < wanted) {
        int under_way = present - first - (count - (wanted - (topic_count ? joined : open_clients)));
        while (present < last && under_way++ < at_once && !failed[0])
            dial(clients + present++);
        turn(1);
        if (now() > deadline)
            fail("%d of %d users have joined within %g s", joined - (wanted - count), count, within);
    }
}

static void join_more(int at_once, double within)
{
    double deadline = now() + within;
    int next = 0;
    joined = 0;
    while (!failed[0] && joined < present) {
        while (next < present && next - joined < at_once && !failed[0]) {
            clients[next].since = now();
            join(clients + next++);
        }
        turn(1);
        if (now() > deadline)
            fail("%d of %d users have joined within %g s", joined, present, within);
    }
}

static void round_trip(int count, double seconds, double rate, int kind)
{
    double began = now(), end = began + seconds;
    uint64_t sent = 0;
    if (count > joined) {
        fail("%d users are there, of %d", joined, count);
        return;
    }
    in_roundtrip = kind;
    is_paced = rate > 0;
    while (!is_paced && sent < (uint64_t)count)
        next_round_trip(clients + sent++);
    for (double at = began; !failed[0] && at < end; at = now()) {
        if (!is_paced) {
            turn(0.1);
            continue;
        }
        if (sent - round_trips >= (uint64_t)count)
            fail("%lu of %lu messages are answered; %g a second are too many", round_trips, sent, rate);
        else if (at >= began + sent / rate)
            next_round_trip(clients + sent++ % count);
        turn(began + sent / rate - at);
    }
    /* Nobody sends again; what is under way comes now. */
    is_paced = 1;
    for (double quiet = now() + 0.2; !failed[0] && now() < quiet;)
        turn(0.05);
    in_roundtrip = 0;
}

static uint64_t broadcast(int burst, int most, double seconds, int size, const char *topic)
{
    double end = now() + seconds;
    uint64_t done = 0;
    if (burst > MAX_BURST) {
        fail("a burst is of %d broadcasts at most", MAX_BURST);
        return 0;
    }
    while (!failed[0] && done < (uint64_t)most && (!done || now() < end)) {
        double began = now(), deadline = began + 120;
        open_callers(burst);
        answered_calls = 0;
        news = 0;
        for (int number = 0; number < burst && !failed[0]; number++)
            call(callers + number, topic, size);
        while (!failed[0] && (answered_calls < burst || news < (uint64_t)burst * joined)) {
            turn(1);
            if (now() > deadline)
                fail("%lu of %lu frames came within 120 s", news, (uint64_t)burst * joined);
        }
        took(now() - began);
        done++;
    }
    return done * burst;
}

static void wait_for_quiet(double seconds, double within)
{
    double deadline = now() + within;
    last_event = now();
    while (!failed[0] && now() - last_event < seconds) {
        turn(0.02);
        if (now() > deadline)
            fail("it is not quiet for %g s within %g s", seconds, within);
    }
}

static int storm(double within)
{
    double deadline = now() + within;
    int back = 0;
    for (int number = 0; number < present; number++)
        clients[number].lost = clients[number].tries = 0;
    storming = 1;
    while (!failed[0] && back < present && now() < deadline) {
        double at;
        turn(0.002);
        at = now();
        back = 0;
        for (int number = 0; number < present; number++) {
            struct client *client = clients + number;
            back += client->lost && client->state == OPEN && client->joined >= topic_count;
            if (client->due && client->due <= at) {
                if (client->state == ABSENT)
                    dial(client);
                else
                    join(client);
            } else if ((client->state == CONNECTING || client->state == UPGRADING) &&
                       at - client->since > attempt_within) {
                lost(client, TIMED_OUT);
            }
        }
    }
    storming = 0;
    if (back < present)
        fail("%d of %d are back within %g s", back, present, within);
    return back;
}

static void close_all(void)
{
    for (int number = 0; number < present; number++)
        hang_up(clients + number);
    close_callers();
    present = joined = beat_at = 0;
}

static void read_users(int from, const char *name)
{
    char line[4096], user[256], token[3500];
    FILE *file = fopen(name, "r");
    if (!file) {
        fail("%s: %s", name, strerror(errno));
        return;
    }
    close_all();
    for (users = 0; users < MAX_CLIENTS && fgets(line, sizeof line, file); users++) {
        if (from-- > 0) {
            users--;
            continue;
        }
        if (sscanf(line, "%255s %3499s", user, token) != 2) {
            fail("%s: line %d is not a user and a token", name, users + 1);
            break;
        }
        free(names[users]);
        free(tokens[users]);
        names[users] = strdup(user);
        tokens[users] = strdup(token);
    }
    fclose(file);
}

static void set_address(struct sockaddr_in *place, const char *address, int port)
{
    place->sin_family = AF_INET;
    place->sin_port = htons(port);
    if (inet_pton(AF_INET, address, &place->sin_addr) != 1 || *address != '1' || strncmp(address, "127.", 4))
        fail("%s is no address of this machine alone", address);
}

static void set_topics(char *text)
{
    topic_count = 0;
    for (char *topic = strtok(text, " "); topic && topic_count < MAX_TOPICS; topic = strtok(NULL, " "))
        snprintf(topics[topic_count++], sizeof topics[0], "%s", topic);
}

static void run(char *line)
{
    char address[64], text[512], topic[64];
    int count = 0, other = 0, size = 0, at = 0;
    double seconds = 0, within = 0, rate = 0, began = now(), before = used();
    uint64_t done = 0;
    failed[0] = refusal[0] = 0;
    time_count = 0;
    frames = bytes = round_trips = attempts = 0;
    memset(failures, 0, sizeof failures);
    if (sscanf(line, "target %63s %d %255s", address, &count, path) == 3) {
        set_address(&target, address, count);
    } else if (sscanf(line, "api %63s %d %255s", address, &count, api_key) == 3) {
        close_callers();
        set_address(&api, address, count);
    } else if (sscanf(line, "users %d %511s", &count, text) == 2) {
        read_users(count, text);
        done = users;
    } else if (sscanf(line, "sources %d", &sources) == 1) {
        done = sources;
    } else if (sscanf(line, "beat %lf", &seconds) == 1) {
        beat_every = seconds;
        beat_next = now();
    } else if (sscanf(line, "connect %d %d %lf %n", &count, &other, &within, &at) == 3) {
        set_topics(line + at);
        connect_users(count, other, within);
        done = count;
    } else if (sscanf(line, "join %d %lf %63s", &other, &within, topic) == 3 && topic_count < MAX_TOPICS) {
        snprintf(topics[topic_count++], sizeof topics[0], "%s", topic);
        join_more(other, within);
        done = joined;
    } else if (sscanf(line, "roundtrip %d %lf %lf %63s", &count, &seconds, &rate, text) == 4) {
        round_trip(count, seconds, rate, *text);
        done = round_trips;
    } else if (sscanf(line, "broadcast %d %d %lf %d %63s", &count, &other, &seconds, &size, topic) == 5) {
        done = broadcast(count, other, seconds, size, topic);
    } else if (sscanf(line, "idle %lf", &seconds) == 1) {
        while (!failed[0] && now() - began < seconds)
            turn(0.02);
    } else if (sscanf(line, "quiet %lf %lf", &seconds, &within) == 2) {
        wait_for_quiet(seconds, within);
    } else if (sscanf(line, "storm %lf", &within) == 1) {
        done = storm(within);
    } else if (!strcmp(line, "close")) {
        close_all();
    } else {
        fail("got the command %.80s; see the head of load.c", line);
    }
    answer(done, began, before);
}

int main(void)
{
    static char input[4096];
    size_t held = 0;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    clients = calloc(MAX_CLIENTS, sizeof *clients);
    names = calloc(MAX_CLIENTS, sizeof *names);
    tokens = calloc(MAX_CLIENTS, sizeof *tokens);
    times = malloc(MAX_TIMES * sizeof *times);
    for (int number = 0; number < MAX_CLIENTS; number++)
        clients[number].fd = -1;
    for (int number = 0; number < MAX_BURST; number++)
        callers[number].fd = -1;
    epoll_fd = epoll_create1(0);
    watch(0, EPOLLIN, UINT64_MAX, EPOLL_CTL_ADD);
    for (;;) {
        ssize_t got;
        char *end;
        commanded = 0;
        while (!commanded)
            turn(1);
        got = read(0, input + held, sizeof input - 1 - held);
        if (got <= 0)
            return 0; /* whoever commands is gone */
        held += got;
        input[held] = 0;
        while ((end = strchr(input, '\n'))) {
            *end = 0;
            watch(0, 0, UINT64_MAX, EPOLL_CTL_MOD);
            run(input);
            watch(0, EPOLLIN, UINT64_MAX, EPOLL_CTL_MOD);
            held -= end + 1 - input;
            memmove(input, end + 1, held + 1);
        }
    }
}
