/* The benchmark's server: as little work per connection as possible, so that the way between is what counts.
 *
 *     load_server ADDRESS PROCESSES TLS_ANSWER PORT...
 *
 * Epoll, one thread in each of PROCESSES (several only because one can have but so many connections open).
 * On every PORT (TCP) it answers by what comes first:
 *
 *     "GET /stream..."   a response without an end, as fast as it goes
 *     "GET /keep..."     a small response; the connection stays open
 *     "G..."             a small response, then it closes (as to `Connection: close`)
 *     0x16               the content of the file TLS_ANSWER (a recorded ServerHello flight); stays open
 *     0x17               TLS records without an end
 *
 * Connections are accepted when their first data is there (TCP_DEFER_ACCEPT), so a short one costs accept,
 * recv, send and close. On the first PORT it also takes UDP: datagrams that begin with 'E' go back.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_FDS (1 << 20) /* more than the limit of open files usually allows */
#define RECORD 16384
#define BLOCK (32 * (RECORD + 5))
#define MAX_EVENTS 256
#define DATAGRAMS 64

enum { QUIET, HTTP_STREAM, TLS_STREAM };

static struct { uint8_t kind; uint32_t at; } *connections;
static char http_block[BLOCK], tls_block[BLOCK], tls_answer[65536], short_answer[2048], keep_answer[2048];
static size_t tls_length, short_length, keep_length;
static int epoll_fd;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static size_t response(char *to, size_t size, const char *connection)
{
	char body[613];
	memset(body, 'x', 612);
	body[612] = 0;
	return snprintf(to, size,
		"HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: text/html\r\nContent-Length: 612\r\n"
		"Connection: %s\r\n\r\n%s", connection, body);
}

static void watch(int fd, uint32_t events, int op)
{
	struct epoll_event event = {.events = events, .data.fd = fd};
	if (epoll_ctl(epoll_fd, op, fd, &event))
		die("epoll_ctl");
}

static int listen_on(struct in_addr at, int port, int type)
{
	int fd = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1, seconds = 5, size = 8 << 20;
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = at};
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
	if (bind(fd, (struct sockaddr *)&address, sizeof address))
		die("bind");
	if (type == SOCK_STREAM) {
		setsockopt(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds);
		if (listen(fd, 65535))
			die("listen");
	} else {
		setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
	}
	watch(fd, EPOLLIN, EPOLL_CTL_ADD);
	return fd;
}

static void pump(int fd)
{
	const char *block = connections[fd].kind == TLS_STREAM ? tls_block : http_block;
	for (int rounds = 0; rounds < 16; rounds++) {
		uint32_t at = connections[fd].at;
		ssize_t sent = send(fd, block + at, BLOCK - at, MSG_NOSIGNAL);
		if (sent < 0) {
			if (errno != EAGAIN)
				close(fd);
			return;
		}
		connections[fd].at = (at + sent) % BLOCK;
	}
}

static void stream(int fd, int kind)
{
	connections[fd].kind = kind;
	connections[fd].at = 0;
	watch(fd, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
	pump(fd);
}

/* What a client sent. `fresh`: just accepted, epoll does not know it yet. */
static void serve(int fd, int fresh)
{
	char data[4096];
	ssize_t got = recv(fd, data, sizeof data, 0);
	if (got <= 0) {
		if (got == 0 || errno != EAGAIN)
			close(fd);
		else if (fresh)
			watch(fd, EPOLLIN, EPOLL_CTL_ADD);
		return;
	}
	int http = data[0] == 'G', keep = !http || !strncmp(data, "GET /keep", 9);
	int endless = http && got > 11 && !strncmp(data, "GET /stream", 11);
	if (http && !keep && !endless) {
		send(fd, short_answer, short_length, MSG_NOSIGNAL);
		close(fd);
		return;
	}
	if (fresh)
		watch(fd, EPOLLIN, EPOLL_CTL_ADD);
	if (endless) {
		static const char head[] = "HTTP/1.1 200 OK\r\nServer: bench\r\n"
			"Content-Type: application/octet-stream\r\nContent-Length: 1000000000000\r\n\r\n";
		send(fd, head, sizeof head - 1, MSG_NOSIGNAL | MSG_MORE);
		stream(fd, HTTP_STREAM);
	} else if (data[0] == 0x16) {
		send(fd, tls_answer, tls_length, MSG_NOSIGNAL);
	} else if (data[0] == 0x17) {
		stream(fd, TLS_STREAM);
	} else if (http) {
		send(fd, keep_answer, keep_length, MSG_NOSIGNAL);
	} else {
		close(fd);
	}
}

static void admit(int listener)
{
	int one = 1;
	for (int n = 0; n < 64; n++) {
		int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0)
			return;
		if (fd >= MAX_FDS) {
			close(fd);
			continue;
		}
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		connections[fd].kind = QUIET;
		serve(fd, 1);
	}
}

static void datagrams(int fd)
{
	static char data[DATAGRAMS][2048];
	static struct sockaddr_in from[DATAGRAMS];
	struct iovec parts[DATAGRAMS];
	struct mmsghdr messages[DATAGRAMS];
	for (int n = 0; n < DATAGRAMS; n++) {
		parts[n] = (struct iovec){data[n], sizeof data[n]};
		messages[n].msg_hdr = (struct msghdr){
			.msg_name = &from[n], .msg_namelen = sizeof from[n], .msg_iov = &parts[n], .msg_iovlen = 1};
	}
	int got = recvmmsg(fd, messages, DATAGRAMS, MSG_DONTWAIT, NULL);
	for (int n = 0; n < got; n++)
		if (data[n][0] == 'E')
			sendto(fd, data[n], messages[n].msg_len, 0, (struct sockaddr *)&from[n], sizeof from[n]);
	if (got > 0 && data[0][0] != 'E' && got < DATAGRAMS)
		usleep(1000); /* a flood: let it gather, or most of the time goes into waking us up */
}

static void run(struct in_addr at, int ports, char **port)
{
	int listeners[16];
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	for (int n = 0; n < ports; n++)
		listeners[n] = listen_on(at, atoi(port[n]), SOCK_STREAM);
	int udp = listen_on(at, atoi(port[0]), SOCK_DGRAM);
	printf("ready\n");
	fflush(stdout);

	struct epoll_event events[MAX_EVENTS];
	for (;;) {
		int count = epoll_wait(epoll_fd, events, MAX_EVENTS, -1);
		for (int n = 0; n < count; n++) {
			int fd = events[n].data.fd, listener = 0;
			for (int i = 0; i < ports; i++)
				listener |= fd == listeners[i];
			if (listener)
				admit(fd);
			else if (fd == udp)
				datagrams(fd);
			else if (events[n].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
				serve(fd, 0);
			else
				pump(fd);
		}
	}
}

int main(int argc, char **argv)
{
	struct in_addr at;
	struct rlimit limit;
	if (argc < 5 || argc > 20 || !inet_aton(argv[1], &at)) {
		fprintf(stderr, "usage: load_server ADDRESS PROCESSES TLS_ANSWER PORT...\n");
		return 2;
	}
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	signal(SIGPIPE, SIG_IGN);
	FILE *file = fopen(argv[3], "rb");
	if (!file)
		die(argv[3]);
	tls_length = fread(tls_answer, 1, sizeof tls_answer, file);
	fclose(file);
	short_length = response(short_answer, sizeof short_answer, "close");
	keep_length = response(keep_answer, sizeof keep_answer, "keep-alive");
	for (char *record = tls_block; record < tls_block + BLOCK; record += RECORD + 5)
		memcpy(record, "\x17\x03\x03\x40\x00", 5);
	connections = calloc(MAX_FDS, sizeof *connections);
	for (int n = 1; n < atoi(argv[2]); n++)
		if (!fork())
			break;
	run(at, argc - 4, argv + 4);
}
