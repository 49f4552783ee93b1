/* An HTTP client with little CPU use: one thread, epoll, and bodies dropped inside the kernel.
 *
 *   reader [-c CONNECTIONS] [-s STRIDE] [-d SECONDS] [-r BYTES/s] [-t 1.2|1.3] HOST PORT PATH...
 *
 * Connection i requests the paths i mod STRIDE, i mod STRIDE + STRIDE, and so on: each once or, with
 * -d, repeatedly for that time. -r limits each connection to that many bytes per second. -t uses that
 * TLS version (any other word: any version) and does not verify certificates.
 *
 * Prints one line of JSON: seconds, bytes of bodies, responses, and the times from request to first
 * and to last byte of the body: p50, p99 and maximum, in seconds.
 * A status other than 200, a body without Content-Length and a truncated body are errors: the program
 * prints a message and exits with status 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 1 << 20, HEADER = 16 << 10, TURN = 8 << 20, TICKS = 50 };

enum phase { CONNECTING, HANDSHAKE, SENDING, HEAD, BODY, DONE };

struct connection {
    int socket, path, interest;
    enum phase phase;
    SSL *tls;
    char head[HEADER + 1];
    size_t head_length;  /* of the request while sending, of the received bytes while reading the head */
    size_t sent;
    long long remaining; /* bytes of the body not yet received */
    long long budget;    /* bytes that a slow reader may still read in this tick */
    int closes, has_first_byte;
    double asked_at;
};

struct times {
    double *values;
    size_t count, room;
};

static struct {
    const char *host;
    char **paths;
    int port, path_count, connections, stride;
    double seconds, rate;
    SSL_CTX *tls;
} options = {.connections = 1, .stride = 1};

static struct sockaddr_in address;
static struct times first_bytes, lasts;
static long long bytes, responses;
static int poller, open_connections;
static char buffer[PIECE];

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("reader: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void keep(struct times *times, double value) {
    if (times->count == times->room) {
        times->room = times->room ? 2 * times->room : 1024;
        times->values = realloc(times->values, times->room * sizeof *times->values);
    }
    times->values[times->count++] = value;
}

/* --- the transport --- */

static void await(struct connection *c, int interest) {
    if (c->interest == interest)
        return;
    struct epoll_event event = {.events = interest, .data.ptr = c};
    epoll_ctl(poller, c->interest ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->socket, &event);
    c->interest = interest;
}

static void open_connection(struct connection *c) {
    int one = 1;
    c->socket = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(c->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->socket, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        fail("cannot connect to port %d: %s", options.port, strerror(errno));
    c->phase = CONNECTING;
    c->interest = 0;
    await(c, EPOLLOUT);
}

static void close_connection(struct connection *c) {
    if (c->tls)
        SSL_free(c->tls);
    c->tls = NULL;
    close(c->socket);
}

/* Returns the number of bytes read, 0 at the end of the stream, -1 if no byte is available.
 * Dropped bytes stay in the kernel, unless they are encrypted. */
static ssize_t receive(struct connection *c, void *into, size_t length, int is_dropped) {
    if (c->tls) {
        int got = SSL_read(c->tls, into, length);
        if (got > 0)
            return got;
        int error = SSL_get_error(c->tls, got);
        return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? -1 : 0;
    }
    ssize_t got = recv(c->socket, into, length, is_dropped ? MSG_TRUNC : 0);
    if (got < 0 && errno != EAGAIN)
        fail("port %d, %s: %s", options.port, options.paths[c->path], strerror(errno));
    return got;
}

static int transmit(struct connection *c) {
    const char *from = c->head + c->sent;
    size_t length = c->head_length - c->sent;
    ssize_t put = c->tls ? SSL_write(c->tls, from, length) : send(c->socket, from, length, MSG_NOSIGNAL);
    if (put > 0)
        c->sent += put;
    else if (!c->tls && errno != EAGAIN)
        fail("port %d: %s", options.port, strerror(errno));
    return c->sent == c->head_length;
}

static int shake_hands(struct connection *c) {
    int done = SSL_connect(c->tls);
    if (done == 1)
        return 1;
    int error = SSL_get_error(c->tls, done);
    if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE)
        fail("port %d: the TLS handshake failed", options.port);
    await(c, error == SSL_ERROR_WANT_READ ? EPOLLIN : EPOLLOUT);
    return 0;
}

/* --- requests and responses --- */

static void start_request(struct connection *c) {
    c->head_length = snprintf(c->head, HEADER,
        "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUser-Agent: reader\r\n"
        "Accept: application/vnd.oci.image.manifest.v1+json, */*\r\n\r\n",
        options.paths[c->path], options.host, options.port);
    c->sent = 0;
    c->has_first_byte = 0;
    c->asked_at = now();
    c->phase = SENDING;
}

/* Select the next path of this connection; 0 if all are done and -d is not set. */
static int advance(struct connection *c) {
    c->path += options.stride;
    if (c->path < options.path_count)
        return 1;
    c->path %= options.stride;
    return options.seconds > 0;
}

static void end_response(struct connection *c) {
    keep(&lasts, now() - c->asked_at);
    responses++;
    if (!advance(c)) {
        close_connection(c);
        c->phase = DONE;
        open_connections--;
    } else if (c->closes) {
        close_connection(c);
        open_connection(c);
    } else {
        start_request(c);
    }
}

static const char *header(const char *head, const char *name) {
    const char *found = strcasestr(head, name);
    return found ? found + strlen(name) : NULL;
}

/* Parse the head; bytes after it are the first of the body. */
static void parse_head(struct connection *c) {
    int status = 0;
    sscanf(c->head, "HTTP/1.%*d %d", &status);
    if (status != 200)
        fail("port %d, %s: status %d", options.port, options.paths[c->path], status);
    const char *length = header(c->head, "\r\nContent-Length:");
    if (!length)
        fail("port %d, %s: no Content-Length", options.port, options.paths[c->path]);
    c->remaining = atoll(length);
    c->closes = header(c->head, "\r\nConnection: close") != NULL;
    c->phase = BODY;
}

/* Count bytes of the body; 1 at its end. */
static int take(struct connection *c, long long length) {
    if (length && !c->has_first_byte) {
        c->has_first_byte = 1;
        keep(&first_bytes, now() - c->asked_at);
    }
    bytes += length;
    c->budget -= length;
    c->remaining -= length;
    return !c->remaining;
}

/* 1 if the head is complete; *is_over is set if the whole body came with it. */
static int read_head(struct connection *c, int *is_over) {
    ssize_t got = receive(c, c->head + c->head_length, HEADER - c->head_length, 0);
    if (got < 0)
        return 0;
    if (got == 0)
        fail("port %d, %s: closed without a response", options.port, options.paths[c->path]);
    c->head_length += got;
    c->head[c->head_length] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end)
        return 0;
    end[2] = 0;
    parse_head(c);
    *is_over = take(c, c->head + c->head_length - end - 4);
    return 1;
}

static int read_body(struct connection *c, int *is_over) {
    long long wanted = c->tls ? PIECE : TURN;
    if (c->remaining < wanted)
        wanted = c->remaining;
    if (options.rate > 0 && c->budget < wanted)
        wanted = c->budget;
    ssize_t got = receive(c, buffer, wanted, 1);
    if (got < 0)
        return 0;
    if (got == 0)
        fail("port %d, %s: truncated body", options.port, options.paths[c->path]);
    *is_over = take(c, got);
    return 1;
}

/* Read without blocking, up to a number of bytes, so that all connections get their turn. */
static void proceed(struct connection *c) {
    long long until = bytes + TURN;
    while (c->phase != DONE && bytes < until) {
        int is_over = 0;
        if (c->phase == CONNECTING) {
            if (options.tls) {
                c->tls = SSL_new(options.tls);
                SSL_set_fd(c->tls, c->socket);
                c->phase = HANDSHAKE;
            } else {
                start_request(c);
            }
        } else if (c->phase == HANDSHAKE) {
            if (!shake_hands(c))
                return;
            start_request(c);
        } else if (c->phase == SENDING) {
            if (!transmit(c))
                return await(c, EPOLLOUT);
            c->phase = HEAD;
            c->head_length = 0;
        } else {
            await(c, EPOLLIN);
            if (options.rate > 0 && c->budget <= 0)
                return;
            if (!(c->phase == HEAD ? read_head(c, &is_over) : read_body(c, &is_over)))
                return;
            if (is_over)
                end_response(c);
        }
    }
}

/* --- the run --- */

static void refill(struct connection *all) {
    for (int i = 0; i < options.connections; i++) {
        all[i].budget = options.rate / TICKS;
        if (all[i].phase >= HEAD)
            proceed(&all[i]);
    }
}

static double run(struct connection *all) {
    struct epoll_event events[128];
    double began = now(), tick = began;
    for (int i = 0; i < options.connections; i++) {
        all[i].path = i % options.stride;
        open_connection(&all[i]);
    }
    open_connections = options.connections;
    while (open_connections && !(options.seconds > 0 && now() - began >= options.seconds)) {
        /* While slow readers read a body, only the timer wakes them. */
        int ready = epoll_wait(poller, events, 128, options.rate > 0 ? 0 : 10);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (options.rate <= 0 || c->phase < HEAD)
                proceed(c);
        }
        if (options.rate > 0) {
            usleep(1000000 / TICKS / 4);
            if (now() - tick >= 1.0 / TICKS) {
                tick += 1.0 / TICKS;
                refill(all);
            }
        }
    }
    return now() - began;
}

static int compare(const void *one, const void *other) {
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

static void print_times(const char *name, struct times *times) {
    if (!times->count)
        keep(times, 0);
    qsort(times->values, times->count, sizeof *times->values, compare);
    printf(", \"%s\": {\"p50\": %.6f, \"p99\": %.6f, \"max\": %.6f}", name, times->values[times->count / 2],
           times->values[(size_t)(times->count * 0.99)], times->values[times->count - 1]);
}

static void prepare_tls(const char *version) {
    int only = strcmp(version, "1.2") ? strcmp(version, "1.3") ? 0 : TLS1_3_VERSION : TLS1_2_VERSION;
    options.tls = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(options.tls, only);
    SSL_CTX_set_max_proto_version(options.tls, only);
    /* Go and OpenSSL prefer different ciphers; both have this one in hardware. */
    SSL_CTX_set_cipher_list(options.tls, "ECDHE-ECDSA-AES128-GCM-SHA256");
    SSL_CTX_set_mode(options.tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_options(options.tls, SSL_OP_IGNORE_UNEXPECTED_EOF);
}

int main(int argc, char **argv) {
    int letter;
    while ((letter = getopt(argc, argv, "c:s:d:r:t:")) != -1) {
        switch (letter) {
        case 'c': options.connections = atoi(optarg); break;
        case 's': options.stride = atoi(optarg); break;
        case 'd': options.seconds = atof(optarg); break;
        case 'r': options.rate = atof(optarg); break;
        case 't': prepare_tls(optarg); break;
        default: return 2;
        }
    }
    if (argc - optind < 2 + options.stride)
        fail("expected HOST PORT PATH..., with at least STRIDE paths");
    options.host = argv[optind];
    options.port = atoi(argv[optind + 1]);
    options.paths = argv + optind + 2;
    options.path_count = argc - optind - 2;
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(options.port)};
    inet_pton(AF_INET, options.host, &address.sin_addr);
    poller = epoll_create1(0);
    struct connection *all = calloc(options.connections, sizeof *all);
    double seconds = run(all);
    printf("{\"seconds\": %.6f, \"bytes\": %lld, \"responses\": %lld", seconds, bytes, responses);
    print_times("first_byte", &first_bytes);
    print_times("last_byte", &lasts);
    puts("}");
    return 0;
}
