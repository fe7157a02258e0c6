/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Numbered UDP datagrams, so that every one that is lost, doubled or overtaken is known.
 *
 *   stream send PORT PER_SECOND LENGTH ID=ADDRESS …   to each address so many; ends at SIGTERM
 *   stream recv PORT                                  ends at SIGTERM, once nothing has come for 0.3 s
 *
 * Each prints one line of JSON at its end. A datagram: u32 stream, u32 number, filled up with zeros.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define STREAMS 32
#define NUMBERS (1u << 27)
#define BATCH 64
#define GAPS 32
#define LONGEST 1472

struct datagram {
	uint32_t stream;
	uint32_t number;
};

static volatile sig_atomic_t ended;

static void on_end(int number)
{
	(void)number;
	ended = 1;
}

static double now_s(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static int udp_socket(int port)
{
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = socket(AF_INET, SOCK_DGRAM, 0), size = 64 << 20, one = 1;

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) ||
	    setsockopt(fd, SOL_SOCKET, SO_RXQ_OVFL, &one, sizeof(one)) ||
	    (port && bind(fd, (struct sockaddr *)&here, sizeof(here)))) {
		perror("socket");
		exit(1);
	}
	return fd;
}

static int send_all(int port, double per_second, int length, int count, char **targets)
{
	static struct sockaddr_in to[STREAMS];
	static struct datagram packets[BATCH];
	static char filling[LONGEST];
	uint32_t ids[STREAMS], sent[STREAMS] = {0};
	uint64_t refused = 0;
	double begin = now_s(CLOCK_MONOTONIC);
	int fd = udp_socket(0);

	for (int i = 0; i < count; i++) {
		char *address = strchr(targets[i], '=') + 1;

		ids[i] = atoi(targets[i]);
		to[i] = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
		inet_pton(AF_INET, address, &to[i].sin_addr);
	}
	while (!ended) {
		double due = (now_s(CLOCK_MONOTONIC) - begin) * per_second;
		struct timespec pause = {.tv_nsec = 1000000};

		for (int i = 0; i < count; i++) {
			struct mmsghdr messages[BATCH] = {0};
			struct iovec parts[BATCH][2];
			int wanted = due - sent[i] > BATCH ? BATCH : (int)(due - sent[i]), done;

			for (int k = 0; k < wanted; k++) {
				packets[k] = (struct datagram){htonl(ids[i]), htonl(sent[i] + k)};
				parts[k][0] = (struct iovec){&packets[k], sizeof(packets[k])};
				parts[k][1] = (struct iovec){filling, length - sizeof(packets[k])};
				messages[k].msg_hdr = (struct msghdr){.msg_name = &to[i], .msg_namelen = sizeof(to[i]),
								      .msg_iov = parts[k], .msg_iovlen = 2};
			}
			done = wanted > 0 ? sendmmsg(fd, messages, wanted, 0) : 0;
			if (done < 0)
				refused++;
			else
				sent[i] += done;
		}
		nanosleep(&pause, NULL);
	}
	printf("{\"refused\": %lu, \"seconds\": %.3f", refused, now_s(CLOCK_MONOTONIC) - begin);
	for (int i = 0; i < count; i++)
		printf(", \"%u\": %u", ids[i], sent[i]);
	printf("}\n");
	return 0;
}

struct stream {
	uint8_t *seen;
	uint32_t next, received, doubled, late, gaps;
	struct {
		double at;
		uint32_t from, count;
	} gap[GAPS];
};

static void take(struct stream *stream, uint32_t number)
{
	if (number >= NUMBERS)
		return;
	if (!stream->seen)
		stream->seen = calloc(NUMBERS / 8, 1);
	if (stream->seen[number / 8] & 1 << number % 8) {
		stream->doubled++;
		return;
	}
	stream->seen[number / 8] |= 1 << number % 8;
	stream->received++;
	if (number < stream->next) {
		stream->late++;
		return;
	}
	if (number > stream->next && stream->gaps < GAPS) {
		stream->gap[stream->gaps].at = now_s(CLOCK_REALTIME);
		stream->gap[stream->gaps].from = stream->next;
		stream->gap[stream->gaps++].count = number - stream->next;
	}
	stream->next = number + 1;
}

static int receive_all(int port)
{
	static struct stream streams[STREAMS];
	static char bodies[BATCH][LONGEST], controls[BATCH][64];
	struct timeval quiet = {.tv_usec = 300000};
	uint32_t overflowed = 0;
	int fd = udp_socket(port);

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &quiet, sizeof(quiet));
	for (;;) {
		struct mmsghdr messages[BATCH] = {0};
		struct iovec parts[BATCH];
		int count;

		for (int k = 0; k < BATCH; k++) {
			parts[k] = (struct iovec){bodies[k], LONGEST};
			messages[k].msg_hdr = (struct msghdr){.msg_iov = &parts[k], .msg_iovlen = 1,
							      .msg_control = controls[k],
							      .msg_controllen = sizeof(controls[k])};
		}
		count = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
		if (count < 0 && errno == EINTR)
			continue;
		if (count < 0 && ended)
			break;
		for (int k = 0; k < count; k++) {
			struct datagram *packet = (struct datagram *)bodies[k];
			struct cmsghdr *control = CMSG_FIRSTHDR(&messages[k].msg_hdr);

			if (control && control->cmsg_type == SO_RXQ_OVFL)
				memcpy(&overflowed, CMSG_DATA(control), sizeof(overflowed));
			if (messages[k].msg_len >= sizeof(*packet) && ntohl(packet->stream) < STREAMS)
				take(&streams[ntohl(packet->stream)], ntohl(packet->number));
		}
	}
	printf("{\"overflowed\": %u", overflowed);
	for (int i = 0; i < STREAMS; i++) {
		if (!streams[i].received)
			continue;
		printf(", \"%d\": {\"received\": %u, \"doubled\": %u, \"late\": %u, \"gaps\": [", i, streams[i].received,
		       streams[i].doubled, streams[i].late);
		for (uint32_t k = 0; k < streams[i].gaps; k++)
			printf("%s[%.3f, %u, %u]", k ? ", " : "", streams[i].gap[k].at, streams[i].gap[k].from,
			       streams[i].gap[k].count);
		printf("]}");
	}
	printf("}\n");
	return 0;
}

int main(int argc, char **argv)
{
	struct sigaction end = {.sa_handler = on_end};

	sigaction(SIGTERM, &end, NULL);
	if (argc >= 6 && !strcmp(argv[1], "send"))
		return send_all(atoi(argv[2]), atof(argv[3]), atoi(argv[4]), argc - 5, argv + 5);
	if (argc == 3 && !strcmp(argv[1], "recv"))
		return receive_all(atoi(argv[2]));
	fprintf(stderr, "usage: stream send PORT PER_SECOND LENGTH ID=ADDRESS ... | stream recv PORT\n");
	return 2;
}
