/* A kernel before Linux 6.11 with a device that has no checksum offload: whoever asks for UDP_SEGMENT gets EIO.
 * Loaded with LD_PRELOAD into a gateway. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags)
{
    unsigned int plain = 0;

    while (plain < count && messages[plain].msg_hdr.msg_controllen == 0)
        plain++;
    if (plain == 0 && count > 0) {
        errno = EIO;
        return -1;
    }
    return syscall(SYS_sendmmsg, fd, messages, plain, flags);
}
