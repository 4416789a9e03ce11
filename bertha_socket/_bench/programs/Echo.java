import java.net.InetSocketAddress;
import java.net.StandardSocketOptions;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.util.Iterator;

/** An ordinary NIO program: java Echo ADDRESS PORT sends back what it gets. */
public final class Echo {
  public static void main(String[] arguments) throws Exception {
    Selector selector = Selector.open();
    ServerSocketChannel server = ServerSocketChannel.open();
    server.bind(new InetSocketAddress(arguments[0], Integer.parseInt(arguments[1])), 1024);
    server.configureBlocking(false);
    server.register(selector, SelectionKey.OP_ACCEPT);
    ByteBuffer room = ByteBuffer.allocateDirect(65536);
    System.out.println("ready");
    while (true) {
      selector.select();
      Iterator<SelectionKey> keys = selector.selectedKeys().iterator();
      while (keys.hasNext()) {
        SelectionKey key = keys.next();
        keys.remove();
        if (key.isAcceptable()) {
          SocketChannel accepted = server.accept();
          if (accepted != null) {
            accepted.configureBlocking(false);
            accepted.setOption(StandardSocketOptions.TCP_NODELAY, true);
            accepted.register(selector, SelectionKey.OP_READ);
          }
          continue;
        }
        SocketChannel channel = (SocketChannel) key.channel();
        room.clear();
        int got;
        try {
          got = channel.read(room);
        } catch (java.io.IOException reset) {
          got = -1;
        }
        if (got < 0) {
          channel.close();
          continue;
        }
        room.flip();
        while (room.hasRemaining()) {
          channel.write(room);
        }
      }
    }
  }
}
