// PORT COUNT: so many threads with a blocking socket each send random messages and check the echo.

import java.io.DataInputStream;
import java.net.Socket;
import java.util.Arrays;
import java.util.Random;

public class Client {
  private static void talk(int port, long seed) throws Exception {
    Random random = new Random(seed);
    try (Socket socket = new Socket("127.0.0.1", port)) {
      socket.setTcpNoDelay(true);
      socket.setSoTimeout(20000);
      DataInputStream in = new DataInputStream(socket.getInputStream());
      for (int i = 0; i < 300; i++) {
        byte[] message = new byte[1 + random.nextInt(8000)];
        random.nextBytes(message);
        socket.getOutputStream().write(message);
        byte[] echo = new byte[message.length];
        in.readFully(echo);
        if (!Arrays.equals(message, echo)) {
          throw new AssertionError("message " + i + " came back changed");
        }
      }
    }
  }

  public static void main(String[] words) throws Exception {
    Thread[] threads = new Thread[Integer.parseInt(words[1])];
    for (int i = 0; i < threads.length; i++) {
      long seed = i;
      threads[i] = new Thread(() -> {
        try {
          talk(Integer.parseInt(words[0]), seed);
        } catch (Throwable problem) {
          problem.printStackTrace();
          System.exit(1);
        }
      });
      threads[i].start();
    }
    for (Thread thread : threads) {
      thread.join();
    }
    System.out.println("ok");
  }
}
