/* The least that a server can do: what the kernel takes of anybody, and what the generator can drive.
 *
 * It lets everybody in without a look at the token, echoes each text frame of up to 125 bytes, and sends each
 * connection what POST /api/broadcasts asks for: a read and a send a frame, and nothing that is not needed.
 * It believes what it is sent; it is for benchmarks on the loopback interface alone.
 *
 *     floor PORT
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_FILES = 65536, EVENTS = 1024 };
enum kind { CLOSED, NEW, CLIENT };

static const char upgraded[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                               "Sec-WebSocket-Accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=\r\n\r\n"; /* of load.c's key */
static const char accepted[] = "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n";
static uint8_t kinds[MAX_FILES];
static int highest;

static void put(int fd, const char *data, size_t size)
{
    if (send(fd, data, size, MSG_NOSIGNAL) != (ssize_t)size)
        fprintf(stderr, "a frame was not sent whole\n");
}

static void end(int fd)
{
    kinds[fd] = CLOSED;
    close(fd);
}

/* The body {"topic":"T","event":"E","payload":P} becomes the frame ["1",null,"T","E",P]. */
static void broadcast(int caller, char *body)
{
    static char frame[16384];
    char *topic = strstr(body, "\"topic\":"), *event = strstr(body, ",\"event\":"),
         *payload = strstr(body, ",\"payload\":");
    if (!topic || !event || !payload)
        return;
    int size = snprintf(frame + 4, sizeof frame - 4, "[\"1\",null,%.*s,%.*s,%.*s]", (int)(event - topic - 8),
                        topic + 8, (int)(payload - event - 9), event + 9, (int)(strlen(payload) - 12), payload + 11);
    char *start = frame + (size < 126 ? 2 : 0);
    start[0] = (char)0x81;
    start[1] = size < 126 ? size : 126;
    if (size >= 126) {
        start[2] = size >> 8;
        start[3] = size & 0xff;
    }
    for (int fd = 0; fd <= highest; fd++)
        if (kinds[fd] == CLIENT)
            put(fd, start, frame + 4 + size - start);
    put(caller, accepted, sizeof accepted - 1);
}

static void echo(int fd, unsigned char *data, ssize_t size)
{
    unsigned char *at = data;
    while (data + size - at >= 6 && data + size - at >= 6 + (at[1] & 0x7f)) {
        int length = at[1] & 0x7f;
        for (int byte = 0; byte < length; byte++)
            at[6 + byte] ^= at[2 + (byte & 3)];
        at[4] = at[0];
        at[5] = length;
        put(fd, (char *)at + 4, 2 + length);
        at += 6 + length;
    }
}

static void readable(int fd)
{
    static char data[65536];
    ssize_t size = recv(fd, data, sizeof data - 1, 0);
    if (size <= 0) {
        end(fd);
        return;
    }
    data[size] = 0;
    if (kinds[fd] == CLIENT) {
        echo(fd, (unsigned char *)data, size);
    } else if (!strncmp(data, "POST ", 5)) {
        broadcast(fd, data);
    } else {
        kinds[fd] = CLIENT;
        put(fd, upgraded, sizeof upgraded - 1);
    }
}

int main(int count, char **arguments)
{
    static struct epoll_event events[EVENTS];
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), poll = epoll_create1(0);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    here.sin_port = htons(count > 1 ? atoi(arguments[1]) : 0);
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listening, (struct sockaddr *)&here, sizeof here) < 0 || listen(listening, 4096) < 0) {
        perror("floor");
        return 1;
    }
    struct epoll_event wanted = {.events = EPOLLIN, .data.fd = listening};
    epoll_ctl(poll, EPOLL_CTL_ADD, listening, &wanted);
    for (;;) {
        int ready = epoll_wait(poll, events, EVENTS, -1);
        for (int number = 0; number < ready; number++) {
            int fd = events[number].data.fd;
            if (fd != listening) {
                readable(fd);
                continue;
            }
            while ((fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                if (fd >= MAX_FILES) {
                    close(fd);
                    continue;
                }
                kinds[fd] = NEW;
                highest = fd > highest ? fd : highest;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                wanted.data.fd = fd;
                epoll_ctl(poll, EPOLL_CTL_ADD, fd, &wanted);
            }
        }
    }
}
