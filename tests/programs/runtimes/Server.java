// PORT COUNT: an echo server on one Selector, which ends when that many connections have.

import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;

public class Server {
  public static void main(String[] words) throws Exception {
    int left = Integer.parseInt(words[1]);
    Selector selector = Selector.open();
    ServerSocketChannel listener = ServerSocketChannel.open();
    listener.bind(new InetSocketAddress("127.0.0.1", Integer.parseInt(words[0])));
    listener.configureBlocking(false);
    listener.register(selector, SelectionKey.OP_ACCEPT);
    ByteBuffer buffer = ByteBuffer.allocateDirect(65536);
    while (left > 0) {
      selector.select();
      for (SelectionKey key : selector.selectedKeys()) {
        if (key.isAcceptable()) {
          SocketChannel connection = listener.accept();
          connection.configureBlocking(false);
          connection.register(selector, SelectionKey.OP_READ);
          continue;
        }
        SocketChannel connection = (SocketChannel) key.channel();
        buffer.clear();
        if (connection.read(buffer) < 0) {
          connection.close();
          left--;
          continue;
        }
        buffer.flip();
        while (buffer.hasRemaining()) {
          connection.write(buffer);
        }
      }
      selector.selectedKeys().clear();
    }
  }
}
