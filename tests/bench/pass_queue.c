/* A gateway that judges nothing: what is left of nedge's way when the judging costs nothing.
 *
 *     pass_queue QUEUE MARK
 *
 * It answers what nedge's rules send to the queue as nedge would: a packet without payload goes on, one with
 * payload gets MARK and meets the rules again, so that the kernel takes the rest of its flow over. Only TCP over
 * IPv4. Messages: linux/netfilter/nfnetlink_queue.h. Says "ready" when it listens.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define RANGE 2048 /* as nedge copies */
#define RECEIVE_BUFFER (8 << 20)

static char out[64 * 1024];
static size_t used;

static struct nlmsghdr *message(uint16_t type, uint16_t queue)
{
	struct nlmsghdr *head = (void *)(out + used);
	struct nfgenmsg *body = NLMSG_DATA(head);

	*head = (struct nlmsghdr){.nlmsg_len = NLMSG_LENGTH(sizeof *body), .nlmsg_flags = NLM_F_REQUEST};
	head->nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | type;
	*body = (struct nfgenmsg){.version = NFNETLINK_V0, .res_id = htons(queue)};
	return head;
}

static void attribute(struct nlmsghdr *head, uint16_t type, const void *value, size_t size)
{
	struct nlattr *attr = (void *)((char *)head + NLMSG_ALIGN(head->nlmsg_len));

	attr->nla_type = type;
	attr->nla_len = NLA_HDRLEN + size;
	memcpy((char *)attr + NLA_HDRLEN, value, size);
	head->nlmsg_len = NLMSG_ALIGN(head->nlmsg_len) + NLA_ALIGN(attr->nla_len);
}

static void flush(int sock)
{
	if (used && send(sock, out, used, 0) < 0) {
		perror("send");
		exit(1);
	}
	used = 0;
}

static void judge(struct nlmsghdr *in, uint16_t queue, uint32_t mark)
{
	char *at = (char *)NLMSG_DATA(in) + NLMSG_ALIGN(sizeof(struct nfgenmsg));
	char *end = (char *)in + in->nlmsg_len;
	struct nfqnl_msg_verdict_hdr verdict = {.verdict = htonl(NF_ACCEPT)};
	struct nlmsghdr *answer;
	uint32_t marked = htonl(mark);

	while (at + NLA_HDRLEN <= end) {
		struct nlattr *attr = (void *)at;
		uint8_t *value = (uint8_t *)at + NLA_HDRLEN;

		if ((attr->nla_type & NLA_TYPE_MASK) == NFQA_PACKET_HDR) {
			verdict.id = ((struct nfqnl_msg_packet_hdr *)value)->packet_id;
		} else if ((attr->nla_type & NLA_TYPE_MASK) == NFQA_PAYLOAD) {
			int headers = 4 * (value[0] & 15);

			headers += 4 * (value[headers + 12] >> 4);
			if ((value[2] << 8 | value[3]) > headers)
				verdict.verdict = htonl(NF_REPEAT);
		}
		at += NLA_ALIGN(attr->nla_len);
	}
	answer = message(NFQNL_MSG_VERDICT, queue);
	attribute(answer, NFQA_VERDICT_HDR, &verdict, sizeof verdict);
	if (verdict.verdict == htonl(NF_REPEAT))
		attribute(answer, NFQA_MARK, &marked, sizeof marked);
	used += NLMSG_ALIGN(answer->nlmsg_len);
}

int main(int argc, char **argv)
{
	static char in[64 * 1024];
	int sock = socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER), size = RECEIVE_BUFFER;
	struct nfqnl_msg_config_cmd bind_it = {.command = NFQNL_CFG_CMD_BIND};
	struct nfqnl_msg_config_params copies = {.copy_range = htonl(RANGE), .copy_mode = NFQNL_COPY_PACKET};
	uint32_t flags = htonl(NFQA_CFG_F_GSO), length = htonl(8192);
	struct nlmsghdr *head;
	uint16_t queue;
	uint32_t mark;

	if (argc != 3 || sock < 0) {
		fprintf(stderr, "usage: pass_queue QUEUE MARK\n");
		return 2;
	}
	queue = atoi(argv[1]);
	mark = strtoul(argv[2], NULL, 0);
	setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
	head = message(NFQNL_MSG_CONFIG, queue);
	attribute(head, NFQA_CFG_CMD, &bind_it, sizeof bind_it);
	used += NLMSG_ALIGN(head->nlmsg_len);
	head = message(NFQNL_MSG_CONFIG, queue);
	attribute(head, NFQA_CFG_PARAMS, &copies, sizeof copies);
	attribute(head, NFQA_CFG_FLAGS, &flags, sizeof flags);
	attribute(head, NFQA_CFG_MASK, &flags, sizeof flags);
	attribute(head, NFQA_CFG_QUEUE_MAXLEN, &length, sizeof length);
	used += NLMSG_ALIGN(head->nlmsg_len);
	flush(sock);
	puts("ready");
	fflush(stdout);
	for (;;) {
		/* What waits is judged in a row, and answered at once. */
		ssize_t got = recv(sock, in, sizeof in, used ? MSG_DONTWAIT : 0);
		struct nlmsghdr *next = (void *)in;

		if (got < 0 && errno == EAGAIN) {
			flush(sock);
			continue;
		}
		if (got < 0 && errno != ENOBUFS) {
			perror("recv");
			return 1;
		}
		for (; got > 0 && NLMSG_OK(next, got); next = NLMSG_NEXT(next, got)) {
			if (next->nlmsg_type == NLMSG_ERROR) {
				fprintf(stderr, "refused: %s\n", strerror(-*(int *)NLMSG_DATA(next)));
				return 1;
			}
			if (next->nlmsg_type == (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET))
				judge(next, queue, mark);
		}
		if (used > sizeof out / 32)
			flush(sock);
	}
}
