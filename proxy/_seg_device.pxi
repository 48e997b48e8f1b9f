# Part of _seg.pyx: batches of packets from and to a TUN descriptor, without Python code for each.

cdef extern from "Python.h":
    PyObject *new_bytes "PyBytes_FromStringAndSize" (const char *, Py_ssize_t) except NULL
    char *bytes_data "PyBytes_AS_STRING" (PyObject *)
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1

cdef enum:
    MAX_PACKET = VIRTIO + 65536
    # Below this a copy is cheaper than to give the buffer away and to get a new one.
    COPIED = 8192
    MAX_VECTOR = 1024  # linux/uio.h UIO_MAXIOV

# What the next packet is read into; given away, cut to size, when a long one came. Never shared.
cdef PyObject *_spare = NULL


def read_packets(int fd, int limit):
    """At most ``limit`` packets from a descriptor that does not block, in order.

    An empty list when there is none now. Raises OSError if the first read fails otherwise; a later
    failure ends the batch and is found again by the next call.
    """
    global _spare
    cdef list packets = []
    cdef Py_ssize_t size
    while len(packets) < limit:
        if _spare == NULL:
            _spare = new_bytes(NULL, MAX_PACKET)
        size = read(fd, bytes_data(_spare), MAX_PACKET)
        if size < 0:
            if errno == EINTR:
                PyErr_CheckSignals()
                continue
            if errno != EAGAIN and not packets:
                PyErr_SetFromErrno(OSError)
            break
        if size < COPIED:
            packets.append(PyBytes_FromStringAndSize(bytes_data(_spare), size))
            continue
        give_spare(packets, size)
    return packets


cdef int give_spare(list packets, Py_ssize_t size) except -1:
    global _spare
    cdef PyObject *packet = _spare
    _spare = NULL
    _PyBytes_Resize(&packet, size)  # frees it, if it fails
    packets.append(<object>packet)
    Py_XDECREF(packet)
    return 0


def write_packets(int fd, list packets not None, Py_ssize_t start):
    """Write packets, each a list of buffers, from index ``start`` on, one system call each.

    Ends at the first that is refused. Returns how many were written, their bytes, and the errno of
    the one that was not (0: all were written).
    """
    cdef Py_ssize_t index
    cdef Py_ssize_t total = 0
    cdef Py_ssize_t size
    for index in range(start, len(packets)):
        size = write_one(fd, <list?>packets[index])
        if size < 0:
            return index - start, total, -size
        total += size
    return len(packets) - start, total, 0


cdef Py_ssize_t write_one(int fd, list parts) except? -1:
    # Bytes written, or the negative errno. A bytes object stays where it is while the list holds
    # it, and so does what a view shows: only the exports are to be released again.
    cdef iovec vector[MAX_VECTOR]
    cdef Py_buffer views[MAX_VECTOR]
    cdef Py_ssize_t count = len(parts)
    cdef Py_ssize_t held = 0
    cdef Py_ssize_t size
    if count > MAX_VECTOR:
        return write_one(fd, [b"".join(parts)])
    try:
        while held < count:
            PyObject_GetBuffer(parts[held], &views[held], PyBUF_SIMPLE)
            vector[held].iov_base = views[held].buf
            vector[held].iov_len = views[held].len
            held += 1
        while True:
            size = writev(fd, vector, <int>count)
            if size >= 0:
                return size
            if errno != EINTR:
                return -errno
            PyErr_CheckSignals()
    finally:
        while held:
            held -= 1
            PyBuffer_Release(&views[held])
