/* The benchmark's client. Every connection comes from a 5-tuple of its own: number n has source address
 * BASE + n % SOURCES and source port 1024 + n / SOURCES, so that none comes twice while FIRST only grows.
 *
 *     load_client MODE KEY=VALUE...
 *
 * open     Connections, each with one request, until the server closes them.
 *            rate=0: closed loop, `inflight` at a time; else so many a second, evenly spaced
 *            seconds=N, or count=N and then as many as that
 *            keep=1: an answered connection stays open; they are closed when standard input ends
 * stream   One connection that receives all the time; measured for `seconds` after `warm` seconds.
 *            then=FILE: sent after the first answer
 * flood    One UDP flow: some datagrams that come back, then `seconds` of as many as go, `size` bytes each.
 *
 * All: target=, port=, base=, sources=, first=, request=FILE. Prints one JSON object; with keep=1 when all
 * are open. One thread; addresses need not be configured on an interface (a local route is enough).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MAX_FDS (1 << 20) /* more than the limit of open files usually allows */
#define MAX_EVENTS 256
#define DEADLINE 5.0 /* seconds until a connection counts as failed */
#define MAX_SECONDS 600

enum { FREE, CONNECTING, WAITING, ANSWERED, HELD };

static struct { double start; uint8_t state; } *slots;
static float *latencies;
static size_t taken, room;
static unsigned per_second[MAX_SECONDS];
static char request[65536], then[65536];
static size_t request_length, then_length;
static long first, next, sources, completed, failed, held, inflight;
static struct sockaddr_in target;
static uint32_t base;
static int epoll_fd, keep, highest;
static double began;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec * 1e-9;
}

static const char *option(int argc, char **argv, const char *key, const char *otherwise)
{
	size_t length = strlen(key);
	for (int n = 2; n < argc; n++)
		if (!strncmp(argv[n], key, length) && argv[n][length] == '=')
			return argv[n] + length + 1;
	return otherwise;
}

static size_t load(const char *path, char *to, size_t size)
{
	FILE *file = fopen(path, "rb");
	if (!file)
		die(path);
	size_t length = fread(to, 1, size, file);
	fclose(file);
	return length;
}

static int socket_of(long number, int type)
{
	int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0), one = 1;
	if (fd < 0)
		die("socket");
	struct sockaddr_in source = {.sin_family = AF_INET};
	source.sin_addr.s_addr = htonl(base + number % sources);
	source.sin_port = htons(1024 + number / sources);
	if (number / sources > 65535 - 1024) {
		fprintf(stderr, "all 5-tuples are used up\n");
		exit(1);
	}
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(fd, (struct sockaddr *)&source, sizeof source))
		die("bind");
	return fd;
}

static void start(void)
{
	int fd = socket_of(next++, SOCK_STREAM | SOCK_NONBLOCK), one = 1;
	struct epoll_event event = {.events = EPOLLOUT, .data.fd = fd};
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	slots[fd].start = now();
	slots[fd].state = CONNECTING;
	if (fd > highest)
		highest = fd;
	inflight++;
	if (connect(fd, (struct sockaddr *)&target, sizeof target) && errno != EINPROGRESS)
		die("connect");
	epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

static void finish(int fd, int good)
{
	if (good)
		completed++;
	else
		failed++;
	slots[fd].state = FREE;
	inflight--;
	close(fd);
}

static void answered(int fd)
{
	double time = now();
	if (taken == room) {
		room = room ? 2 * room : 1 << 16;
		latencies = realloc(latencies, room * sizeof *latencies);
	}
	latencies[taken++] = time - slots[fd].start;
	if (time - began < MAX_SECONDS)
		per_second[(int)(time - began)]++;
	slots[fd].state = ANSWERED;
}

static void handle(int fd)
{
	char data[8192];
	if (slots[fd].state == CONNECTING) {
		struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
		if (send(fd, request, request_length, MSG_NOSIGNAL) < 0) {
			finish(fd, 0);
			return;
		}
		slots[fd].state = WAITING;
		epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event);
		return;
	}
	ssize_t got = recv(fd, data, sizeof data, 0);
	if (got < 0 && errno == EAGAIN)
		return;
	if (slots[fd].state == HELD) {
		if (got <= 0) {
			held--;
			failed++;
			slots[fd].state = FREE;
			close(fd);
		}
		return;
	}
	if (got > 0 && slots[fd].state == WAITING)
		answered(fd);
	if (got > 0 && keep) {
		slots[fd].state = HELD;
		held++;
		inflight--;
		completed++;
	} else if (got <= 0) {
		finish(fd, got == 0 && slots[fd].state == ANSWERED);
	} else if (recv(fd, data, sizeof data, MSG_DONTWAIT) == 0) { /* often closed by now */
		finish(fd, 1);
	}
}

static void sweep(void)
{
	double oldest = now() - DEADLINE;
	for (int fd = 0; fd <= highest; fd++)
		if (slots[fd].state != FREE && slots[fd].state != HELD && slots[fd].start < oldest)
			finish(fd, 0);
}

static int ascending(const void *left, const void *right)
{
	float a = *(const float *)left, b = *(const float *)right;
	return (a > b) - (a < b);
}

static double quantile(double part)
{
	return taken ? latencies[(size_t)(part * (taken - 1))] : 0;
}

static void report(double seconds)
{
	qsort(latencies, taken, sizeof *latencies, ascending);
	printf("{\"used\": %ld, \"completed\": %ld, \"failed\": %ld, \"held\": %ld, \"seconds\": %.6f, "
		"\"p50\": %.9f, \"p90\": %.9f, \"p99\": %.9f, \"max\": %.9f, \"per_second\": [",
		next - first, completed, failed, held, seconds, quantile(.5), quantile(.9), quantile(.99), quantile(1));
	for (int n = 0; n < seconds && n < MAX_SECONDS; n++)
		printf("%s%u", n ? ", " : "", per_second[n]);
	printf("]}\n");
	fflush(stdout);
}

static void open_many(int argc, char **argv)
{
	long count = atol(option(argc, argv, "count", "0")), together = atol(option(argc, argv, "inflight", "64"));
	double seconds = atof(option(argc, argv, "seconds", "5")), rate = atof(option(argc, argv, "rate", "0"));
	int timer = -1, running = 1;
	struct epoll_event events[MAX_EVENTS];
	keep = atoi(option(argc, argv, "keep", "0"));
	if (rate > 0) {
		long gap = 1e9 / rate;
		struct itimerspec every = {{gap / 1000000000, gap % 1000000000}, {0, 1}};
		struct epoll_event event = {.events = EPOLLIN};
		timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
		event.data.fd = timer;
		timerfd_settime(timer, 0, &every, NULL);
		epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer, &event);
	}
	began = now();
	double swept = began;
	while (running || inflight) {
		double time = now();
		if (running && (count ? next - first >= count : time - began >= seconds)) {
			running = 0;
			if (!count) { /* what is answered later is not counted */
				report(time - began);
				fclose(stdout);
			}
		}
		while (running && timer < 0 && inflight < together && (!count || next - first < count))
			start();
		int got = epoll_wait(epoll_fd, events, MAX_EVENTS, 200);
		for (int n = 0; n < got; n++) {
			uint64_t due;
			if (events[n].data.fd != timer)
				handle(events[n].data.fd);
			else if (read(timer, &due, sizeof due) == sizeof due)
				for (; due && running && (!count || next - first < count); due--)
					start();
		}
		if (now() - swept > 1) {
			sweep();
			swept = now();
		}
	}
	if (count)
		report(now() - began);
	if (keep) {
		struct epoll_event event = {.events = EPOLLIN};
		char data[64];
		epoll_ctl(epoll_fd, EPOLL_CTL_ADD, 0, &event);
		for (;;) {
			int got = epoll_wait(epoll_fd, events, MAX_EVENTS, -1);
			for (int n = 0; n < got; n++)
				if (events[n].data.fd)
					handle(events[n].data.fd);
				else if (read(0, data, sizeof data) <= 0)
					return;
		}
	}
}

static void stream(int argc, char **argv)
{
	static char data[1 << 18];
	double seconds = atof(option(argc, argv, "seconds", "2")), warm = atof(option(argc, argv, "warm", "0.5"));
	struct timeval patience = {5, 0};
	int fd = socket_of(next++, SOCK_STREAM);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	if (connect(fd, (struct sockaddr *)&target, sizeof target))
		die("connect");
	send(fd, request, request_length, 0);
	if (recv(fd, data, sizeof data, 0) <= 0)
		die("no answer");
	if (then_length)
		send(fd, then, then_length, 0);
	double time = now(), from = 0;
	uint64_t bytes = 0;
	began = time;
	do {
		ssize_t got = recv(fd, data, sizeof data, 0);
		if (got <= 0)
			die("the stream broke off");
		time = now();
		if (from)
			bytes += got;
		else if (time - began >= warm)
			from = time;
	} while (!from || time - from < seconds);
	printf("{\"used\": 1, \"bytes\": %lu, \"seconds\": %.6f}\n", bytes, time - from);
}

static void flood(int argc, char **argv)
{
	static char data[64][1500];
	size_t size = atoi(option(argc, argv, "size", "64"));
	double seconds = atof(option(argc, argv, "seconds", "2")), time;
	struct timeval patience = {0, 100000};
	struct iovec parts[64];
	struct mmsghdr messages[64];
	uint64_t sent = 0;
	int fd = socket_of(next++, SOCK_DGRAM), echoed = 0;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	if (connect(fd, (struct sockaddr *)&target, sizeof target))
		die("connect");
	for (int n = 0; n < 64; n++) {
		memset(data[n], 'B', sizeof data[n]);
		parts[n] = (struct iovec){data[n], size};
		memset(&messages[n], 0, sizeof messages[n]);
		messages[n].msg_hdr.msg_iov = &parts[n];
		messages[n].msg_hdr.msg_iovlen = 1;
	}
	for (int n = 0; n < 40; n++) {
		char back[1500];
		data[0][0] = 'E';
		send(fd, data[0], size, 0);
		echoed += recv(fd, back, sizeof back, 0) > 0;
	}
	data[0][0] = 'B';
	began = now();
	do {
		int went = sendmmsg(fd, messages, 64, 0);
		if (went > 0)
			sent += went;
		time = now();
	} while (time - began < seconds);
	printf("{\"used\": 1, \"echoed\": %d, \"sent\": %lu, \"seconds\": %.6f}\n", echoed, sent, time - began);
}

int main(int argc, char **argv)
{
	if (argc < 2) {
		fprintf(stderr, "usage: load_client open|stream|flood KEY=VALUE...\n");
		return 2;
	}
	struct rlimit limit;
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	target.sin_family = AF_INET;
	target.sin_port = htons(atoi(option(argc, argv, "port", "80")));
	if (!inet_aton(option(argc, argv, "target", ""), &target.sin_addr))
		die("target");
	struct in_addr address;
	if (!inet_aton(option(argc, argv, "base", ""), &address))
		die("base");
	base = ntohl(address.s_addr);
	sources = atol(option(argc, argv, "sources", "1"));
	first = next = atol(option(argc, argv, "first", "0"));
	if (*option(argc, argv, "request", ""))
		request_length = load(option(argc, argv, "request", ""), request, sizeof request);
	if (*option(argc, argv, "then", ""))
		then_length = load(option(argc, argv, "then", ""), then, sizeof then);
	slots = calloc(MAX_FDS, sizeof *slots);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (!strcmp(argv[1], "open"))
		open_many(argc, argv);
	else if (!strcmp(argv[1], "stream"))
		stream(argc, argv);
	else if (!strcmp(argv[1], "flood"))
		flood(argc, argv);
	else
		return 2;
	return 0;
}
