"""What every test may rely on."""

import signal
import threading

# Started in the background of a shell without job control, pytest would hand an ignored SIGINT
# down to the programs that the tests interrupt.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
