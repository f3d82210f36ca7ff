/* killat N REPORT COMMAND...: run COMMAND, and kill its process that is about to make the N-th
 * system call that changes something which outlives it.  N 0: none is killed.  With -a before N
 * all processes of COMMAND are killed with it.
 *
 * Counted, over all processes and threads together: requests to netlink that are no questions,
 * ioctls that make a device or set a feature, and whatever changes files.  What vanishes with
 * its process (memberships, socket options, offloads) is not.
 *
 * REPORT gets a line for each such call, `NUMBER PID NAME`, one `exit CODE` when COMMAND itself
 * has ended, and `killed PID` for the kill.  The call is not carried out: SIGKILL reaches
 * a process that stands at the entry of a call before the call begins.
 *
 * N counts from the first call after there is a file REPORT.count, if that was made with -l.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <unistd.h>
#include <linux/ptrace.h>

#define ETHTOOL_SFEATURES 0x3b

static bool peek(pid_t pid, uint64_t at, void *to, size_t size)
{
    struct iovec here = {to, size}, there = {(void *)(uintptr_t)at, size};
    return process_vm_readv(pid, &here, 1, &there, 1, 0) == (ssize_t)size;
}

/* A file that has a name: what is only in memory goes with its last process. */
static bool is_file(pid_t pid, int fd)
{
    char path[64];
    struct stat found;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
    return stat(path, &found) == 0 && S_ISREG(found.st_mode) && found.st_nlink;
}

/* A message that begins with its own length is netlink's; of rtnetlink every third of four types asks. */
static const char *netlink(pid_t pid, uint64_t at, uint64_t size)
{
    struct nlmsghdr head;
    if (size < sizeof head || !peek(pid, at, &head, sizeof head))
        return NULL;
    if (head.nlmsg_len < sizeof head || head.nlmsg_len > size || head.nlmsg_type < NLMSG_MIN_TYPE)
        return NULL;
    if (head.nlmsg_type >= RTM_BASE && head.nlmsg_type <= RTM_MAX && head.nlmsg_type % 4 == 2)
        return NULL;
    static char said[48];
    snprintf(said, sizeof said, "netlink(%d)", head.nlmsg_type);
    return said;
}

static const char *control(pid_t pid, const __u64 *args)
{
    struct ifreq request;
    uint32_t command;
    if (args[1] == TUNSETIFF)
        return "TUNSETIFF";
    if (args[1] == SIOCETHTOOL && peek(pid, args[2], &request, sizeof request)
        && peek(pid, (uintptr_t)request.ifr_data, &command, sizeof command) && command == ETHTOOL_SFEATURES)
        return "ETHTOOL_SFEATURES";
    return NULL;
}

/* What a call is if it changes something, else NULL. */
static const char *changes(pid_t pid, const struct ptrace_syscall_info *info)
{
    const __u64 *args = info->entry.args;
    struct msghdr message;
    struct iovec vector;
    struct sockaddr address;
    switch (info->entry.nr) {
    case SYS_sendto:
        return netlink(pid, args[1], args[2]);
    case SYS_sendmsg:
        if (peek(pid, args[1], &message, sizeof message) && message.msg_iovlen
            && peek(pid, (uintptr_t)message.msg_iov, &vector, sizeof vector))
            return netlink(pid, (uintptr_t)vector.iov_base, vector.iov_len);
        return NULL;
    case SYS_ioctl:
        return control(pid, args);
    case SYS_bind:
        return peek(pid, args[1], &address, sizeof address.sa_family) && address.sa_family == AF_UNIX ? "bind" : NULL;
    case SYS_openat:
        return args[2] & O_CREAT ? "openat" : NULL;
    case SYS_write:
    case SYS_pwrite64:
        return is_file(pid, args[0]) ? "write" : NULL;
    case SYS_fsync:
    case SYS_fdatasync:
        return "fsync";
    case SYS_renameat:
    case SYS_renameat2:
        return "rename";
    case SYS_unlinkat:
        return "unlink";
    case SYS_mkdirat:
        return "mkdir";
    case SYS_fchmod:
    case SYS_fchmodat:
        return "chmod";
    case SYS_flock:
        return "flock";
#ifdef SYS_rename /* the calls of older architectures */
    case SYS_open:
        return args[1] & O_CREAT ? "open" : NULL;
    case SYS_rename:
        return "rename";
    case SYS_unlink:
        return "unlink";
    case SYS_rmdir:
        return "rmdir";
    case SYS_mkdir:
        return "mkdir";
    case SYS_chmod:
        return "chmod";
#endif
    }
    return NULL;
}

static pid_t group_of(pid_t thread)
{
    char path[64], line[128];
    pid_t group = thread;
    snprintf(path, sizeof path, "/proc/%d/status", thread);
    FILE *status = fopen(path, "r");
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "Tgid: %d", &group) == 1)
            break;
    if (status)
        fclose(status);
    return group;
}

int main(int argc, char **argv)
{
    enum { MOST = 4096 };
    static pid_t traced[MOST];
    int many = 0, status;
    bool all = argc > 1 && !strcmp(argv[1], "-a"), counts = !(argc > 1 && !strcmp(argv[1], "-l"));
    int flags = all || !counts;
    argv += flags;
    if (argc - flags < 4) {
        fprintf(stderr, "usage: killat [-a | -l] N REPORT COMMAND...\n");
        return 2;
    }
    char begin[4096];
    snprintf(begin, sizeof begin, "%s.count", argv[2]);
    long at = atol(argv[1]), number = 0, count = 0;
    int report = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
    pid_t first = fork();
    if (first == 0) {
        raise(SIGSTOP);
        execvp(argv[3], argv + 3);
        _exit(127);
    }
    waitpid(first, &status, WUNTRACED);
    if (ptrace(PTRACE_SEIZE, first, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK
               | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC)) {
        perror("killat: PTRACE_SEIZE");
        return 1;
    }
    kill(first, SIGCONT);
    traced[many++] = first;

    pid_t pid;
    while ((pid = waitpid(-1, &status, __WALL)) > 0 || errno == EINTR) {
        int known = 0, deliver = 0;
        if (pid < 0)
            continue;
        while (known < many && traced[known] != pid)
            known++;
        if (known == many && many < MOST)
            traced[many++] = pid;
        if (!WIFSTOPPED(status)) {
            traced[known] = traced[--many];
            if (pid == first)
                dprintf(report, "exit %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
            continue;
        }
        if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
            struct ptrace_syscall_info info;
            const char *what;
            if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof info, &info) > 0
                && info.op == PTRACE_SYSCALL_INFO_ENTRY && (what = changes(pid, &info))) {
                pid_t group = group_of(pid);
                dprintf(report, "%ld %d %s\n", ++number, group, what);
                counts = counts || access(begin, F_OK) == 0;
                count += counts;
                if (count == at && counts) {
                    for (int i = 0; all && i < many; i++)
                        kill(traced[i], SIGKILL);
                    kill(group, SIGKILL);
                    dprintf(report, "killed %d\n", group);
                }
            }
        } else if (status >> 16 == PTRACE_EVENT_STOP) {
            int number = WSTOPSIG(status);
            if (number == SIGSTOP || number == SIGTSTP || number == SIGTTIN || number == SIGTTOU) {
                ptrace(PTRACE_LISTEN, pid, 0, 0);
                continue;
            }
        } else if (!(status >> 16)) {
            deliver = WSTOPSIG(status);
        }
        ptrace(PTRACE_SYSCALL, pid, 0, deliver);
    }
    return 0;
}
