# cython: language_level=3
"""What the worker, the watch and the control side share, and who may write each part."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ubond._balance cimport fp_loads
from ubond._sys cimport iovec, mmsghdr, pthread_mutex_t

cdef enum:
    MAX_SLAVES = 64         # bits of a mask
    MAX_QUEUES = 64
    MAX_WORKERS = 16
    BATCH = 64              # frames taken before the world is looked at again ...
    BATCH_BYTES = 262144    # ... or bytes, whichever comes first
    FRAME_MAX = 66560       # 64 KiB of GSO, headers, tags, virtio-net header, rounded up
    ARENA = BATCH_BYTES + FRAME_MAX
    NEAR = 2048             # of a received frame this much lies close to its neighbours'
    HEADROOM = 6            # before a received packet: a VLAN tag goes back in there (4), aligned
    NEWS = 256
    DIVERT_RING = 256
    DIVERT_BYTES = 512
    SEEN = 1024             # MACs remembered as sending through the bond: slots of a hash table

    SINGLE = 0              # table.Spread
    ROUND_ROBIN = 1
    HASH = 2
    BROADCAST = 3
    LOAD = 4

    MS = 1000000            # ns

    SLOTS = 16              # targets of the ARP and NS monitor, of each family
    OURS = 32               # addresses of ours that answers are compared with, of each family
    STAMPS = 3 + 3 * SLOTS  # bond.evidence.Form: ANY, ARP, ND, then ANSWER, REPLY and OWN by slot

cdef struct fp_watch:               # bond.evidence.Watch: what received frames are compared with
    bint on
    uint32_t n_target4
    uint32_t n_target6
    uint32_t n_own4
    uint32_t n_own6
    uint32_t target4[SLOTS]         # addresses as they stand in frames
    uint32_t own4[OURS]
    uint8_t target6[SLOTS][16]
    uint8_t own6[OURS][16]
    uint8_t mac[MAX_SLAVES][6]

cdef struct fp_table:               # frozen once published; one batch sees one table
    uint64_t generation
    int spread
    int active                      # index into `port`, or -1
    uint32_t n                      # slaves, in enslave order
    uint32_t packets_per_slave
    int policy                      # which hash, in HASH and LOAD
    bint dynamic                    # in LOAD
    bint adaptive                   # in LOAD: what is sent to it arrives on all slaves too
    int64_t rebalance               # ns, in LOAD
    bint takeover
    bint hold
    uint32_t divert                 # KIND_* bits
    uint64_t can_transmit           # bit per slave
    uint64_t receives
    uint32_t n_succession
    fp_watch watch
    fp_table* older                 # control: the next of the retired ones
    uint8_t address[6]
    uint8_t succession[MAX_SLAVES]
    uint8_t port[MAX_SLAVES]        # slave -> port number
    uint8_t queue_slave[256]        # TAP queue -> slave + 1, 0: none
    uint32_t speed[MAX_SLAVES]      # Mb/s, in LOAD
    uint8_t mac[MAX_SLAVES][6]      # a slave's own, in LOAD

cdef extern from * nogil:
    fp_table* load_table "fp_load"(fp_table** p)
    fp_table* swap_table "fp_swap"(fp_table** p, fp_table* value)

cdef struct fp_counters:            # written by one worker but for those of control, read any time
    uint64_t tx_frames
    uint64_t tx_bytes
    uint64_t rx_frames
    uint64_t rx_bytes
    uint64_t rx_ignored             # arrived on a slave that does not receive: not an error
    uint64_t rx_tap_down            # the bond's device is down
    uint64_t rx_tap_refused         # the TAP would not take it
    uint64_t rx_truncated
    uint64_t tx_too_long
    uint64_t tx_too_long_tagged     # full-size frames with tags that the packet socket refuses
    uint64_t tx_refused             # EINVAL: this frame, not the link
    uint64_t tx_congested           # ring or buffer full for longer than 2 ms
    uint64_t tx_link_down           # sent to a dead link because the table forbade a takeover
    uint64_t tx_copy_dead           # not lost: broadcast copies that a dead slave could not take
    uint64_t tx_held_too_long       # waited a second for a MAC to move
    uint64_t tx_unknown             # an errno that no rule knows
    uint64_t tx_plain               # not lost: sent through the ordinary path after the bypass refused
    uint64_t diverted
    uint64_t divert_policed         # over the share that the control side is ready to read
    uint64_t rx_tunnel_gso          # not lost: tunnel super-frames cut in software
    uint64_t rx_tunnel_refused      # tunnel super-frames that cannot be cut
    uint64_t rx_overrun             # control: the kernel dropped them, the socket's buffer was full
    uint64_t rx_left                # control: still unread in the socket when the slave was released
    uint64_t tx_control             # control: frames of the bond's own, which never were in the TAP

cdef enum:                          # what a backlog waits for
    IDLE = 0
    LINK = 1                        # the ring is full or the link dead: retrying, the watch is asked
    MOVE = 2                        # the next table: a MAC has to move first

cdef struct fp_backlog:             # frames taken from the TAP that could not be sent yet
    int waits
    int64_t since                   # of the last progress
    uint32_t n
    uint32_t used
    uint32_t offset[BATCH]
    uint32_t length[BATCH]
    uint64_t copied                 # bit per frame: broadcast has given it to other slaves too
    uint8_t* bytes                  # ARENA of them, allocated at first need

cdef struct fp_bucket:              # how many diverted frames of one kind Python will look at
    int64_t filled_at
    uint32_t tokens

cdef struct fp_link:                # one slave, from enslave to release: what all threads share
    int open
    int index                       # of the interface: names change
    char name[16]
    int poked                       # control -> watch: look now
    int reading                     # watch: what control was told last, -1 nothing
    uint64_t features               # watch: their digest when it looked last, 0: it has not
    uint64_t dead_under             # newest generation under which a worker found it dead

cdef struct fp_port:                # one slave as one worker has it
    fp_link* link
    int fd                          # bypasses the qdisc: says at once when the link is gone
    int plain_fd                    # the ordinary path, for what the bypass cannot do; all workers'
    uint32_t question               # worker -> watch: number of the newest question about the carrier
    uint32_t answered               # watch -> worker: the newest question it has answered
    int answer                      # watch -> worker: 0 gone, 1 there
    int64_t first_tx                # ns, of the present term as the sending slave
    int64_t last_tx
    int64_t last_rx
    int64_t stamp[STAMPS]           # when which evidence was last seen; ANY is last_rx
    fp_counters count
    fp_backlog backlog
    fp_bucket bucket[3]

cdef enum:                          # kinds of news
    NEWS_CARRIER = 0                # the watch read a change
    NEWS_DEAD = 1                   # the worker found a link dead; `other` stands in (255: nobody)
    NEWS_TAP_GONE = 2
    NEWS_REPORT = 3                 # a host behind the bond joins or leaves multicast groups
    NEWS_FRAMES = 4                 # the watch: frames have come by since control asked
    NEWS_GROUPS = 5                 # the watch: groups have been joined or left, without a report perhaps
    NEWS_FEATURES = 6               # the watch: features of a slave are not what they were

cdef struct fp_news:
    int64_t at
    uint8_t kind
    uint8_t port
    uint8_t other
    uint8_t carrier

cdef struct fp_board:               # from worker and watch to control; rare, so a lock is cheap
    pthread_mutex_t lock
    int eventfd
    uint32_t head
    uint32_t tail
    uint32_t lost
    fp_news item[NEWS]

cdef struct fp_diverted:
    int64_t at
    uint16_t length
    uint8_t port
    uint8_t kind
    uint8_t bytes[DIVERT_BYTES]

cdef struct fp_worker

cdef struct fp_shared:              # one per bond
    fp_table* table                 # swapped by control
    fp_board board
    int watch_kick                  # eventfd: a question, or a new interval
    int64_t interval                # ns between polls, 0: none
    int64_t busy_poll               # ns that a worker looks again and again before it sleeps, 0: none
    int by_mii                      # use_carrier 0: PHY registers before the carrier flag
    int stopping
    int pausing                     # the workers alone are to return, between two batches
    int probe                       # datagram socket for the two ioctls about links
    int groups                      # the kernel's list of all devices' groups, or -1
    int frames_asked                # control wants to hear of the next frames after `frames_then`
    uint64_t frames_then
    uint32_t turn                   # round-robin counter, of all workers: each may have a flow or none
    int n_workers
    fp_worker* worker[MAX_WORKERS]
    fp_link link[MAX_SLAVES]

cdef struct fp_worker:              # one thread
    fp_shared* shared
    int epoll
    int kick                        # eventfd: new table, answer, stop
    int timer                       # timerfd: retry
    bint timer_armed
    int n_taps
    int tap[MAX_QUEUES]
    uint32_t tap_queue[MAX_QUEUES]
    bint tap_armed
    bint awake                      # with `busy_poll`: the last wait was short, so look again before sleeping

    # What the table said, and what was found out since.
    const fp_table* table
    uint64_t seen                   # generation in use, read by control
    uint64_t dead                   # slaves found dead under this table
    uint32_t n_able                 # the others of it that can transmit, in order
    uint8_t able[MAX_SLAVES]
    uint8_t able_port[MAX_SLAVES]   # of the same ones, and their speeds
    uint32_t able_speed[MAX_SLAVES]
    uint8_t slave_of[MAX_SLAVES]    # port -> slave of the table, of those that can transmit
    fp_loads loads
    fp_bucket arp                   # of what the host sends
    int active                      # as the table says, or provisionally another, or -1
    bint provisional
    int stand_in                    # port of the provisionally active slave, or -1
    int taking                      # the slave that is about to stand in, or -1
    uint64_t random
    int64_t checked                 # when the active slave was last asked about by reception
    uint32_t tx_burst               # frames taken at once: as many as there lately were
    int rx_burst                    # packets asked for at once, so that a batch stays in cache

    int reported                    # NEWS_REPORT was told, and control has not looked since

    uint64_t no_slave               # frames for which there was nowhere to go
    uint64_t runt
    uint64_t tap_frames
    uint64_t tap_bytes
    uint64_t tap_diverted           # ARP that control sends for us

    fp_port port[MAX_SLAVES]

    # TAP -> slave: packets one behind the other in `arena`.
    uint8_t* arena
    uint32_t n_out
    uint8_t* out[BATCH]
    uint32_t out_length[BATCH]
    uint8_t to[BATCH]               # slave of each, 255: dropped, 254: control has it
    iovec tx_part[BATCH]
    mmsghdr tx[BATCH]

    # slave -> TAP: each packet begins in its `near` slot and runs over into its `far` one.
    uint8_t* near
    uint8_t* far
    uint8_t* arena_in               # one packet in one piece, for what must look into it
    iovec rx_part[BATCH * 2]
    mmsghdr rx[BATCH]
    uint8_t control[BATCH * 64]

    # Diverted frames: one writer, one reader.
    uint32_t divert_head
    uint32_t divert_tail
    uint64_t divert_lost
    fp_diverted* divert

    # Source MACs other than the bond's that send through it.
    uint64_t seen_mac[SEEN]
    uint64_t last_seen_mac
