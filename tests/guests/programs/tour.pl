# Numbers, strings, hashes, sorting, regular expressions, closures, exceptions, pack.
use strict;
use warnings;
use integer ();

my $state = 12345;
sub rnd { $state = ($state * 1103515245 + 12345) & 0x7fffffff; return $state % shift }

for (1 .. 60) {
    my ($x, $y) = (rnd(100000) - 50000, rnd(999) + 1);
    printf "%d %d %.15g %.15g %.15g %s %s\n", $x, $y, $x / $y, $x**3, sqrt(abs $x), $x % $y, $x <=> $y;
    printf "%x %o %b %e %g %s\n", abs($x), abs($x), abs($x) & 255, $x / 7, $x * 1e10, int($x / $y);
    printf "%.12g %.12g %.12g %.12g\n", sin($x), cos($y), exp($y / 100), log($y);
}
print 9007199254740993, " ", 18446744073709551615, " ", 18446744073709551616, " ", -9223372036854775808, "\n";
print 0.1 + 0.2, " ", 1e308 * 10, " ", -1e308 * 10, " ", 1e-320, " ", (1 <=> "nan" + 0) // "undef", "\n";
{ use integer; print 7 / -2, " ", -7 % 3, " ", 1 << 62, "\n" }

my %count;
my @words = map { join "", map { chr(97 + rnd(6)) } 1 .. 2 + rnd(3) } 1 .. 4000;
$count{$_}++ for @words;
print join(" ", map { "$_=$count{$_}" } (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count)[0 .. 19]), "\n";
print scalar(keys %count), " ", join(",", (sort @words)[0, 1000, 3999]), "\n";
my @numbers = map { rnd(1_000_000) / 7 } 1 .. 3000;
my @sorted = sort { $a <=> $b } @numbers;
print join(" ", @sorted[0 .. 4, 1500, 2999]), "\n";

my $text = join " ", @words;
my $pairs = () = $text =~ /(\w)\1/g;
my @found = $text =~ /\b(a[b-d]+e)\b/g;
(my $changed = $text) =~ s/(\w+) (\w+)/\u$2-\U$1/g;
print "$pairs @found[0 .. 5] ", substr($changed, 0, 120), "\n";
print join("|", split /[ab]+/, substr($text, 0, 80)), " ", ($text =~ tr/a-c//), " ", scalar reverse(substr $text, 0, 20), "\n";
print "matched $+{year}\n" if "on 2024-02-29" =~ /(?<year>\d{4})-(?<month>\d\d)/;
my $nested = qr/\((?:[^()]++|(??{ our $again }))*\)/;
our $again = $nested;
print "balanced: $&\n" if "x(a(b)(c(d)))y" =~ /$nested/;

my $unicode = "Gr\x{fc}\x{df}e \x{65e5}\x{672c} \x{1d518}";
binmode STDOUT, ":encoding(UTF-8)";
print uc $unicode, " ", length $unicode, " ", join(",", map ord, split //, $unicode), "\n";
binmode STDOUT, ":pop";

print unpack("H*", pack "CsSlLqQfdnNvVw", -1 & 255, -2, 65534, -3, 4294967293, -4, 5, 1.1, -2.2, 258, 16909060, 258, 16909060, 300), "\n";
print join(" ", unpack "%32C*", $text), " ", unpack("%32b*", $text), "\n";

my @closures = map { my $n = $_; sub { $n += shift; $n } } 1 .. 3;
print join(",", map { $_->(10) + $_->(1) } @closures), "\n";
sub ackermann { my ($m, $n) = @_; no warnings 'recursion'; return $m == 0 ? $n + 1 : $n == 0 ? ackermann($m - 1, 1) : ackermann($m - 1, ackermann($m, $n - 1)) }
print ackermann(2, 30), "\n";
eval { die { code => 42, inner => [1, 2] } };
print "died $@->{code} $@->{inner}[1]\n";
eval { my $zero = 0; print 1 / $zero };
print $@ =~ s/ at .*//sr, "\n";
print sprintf("%vd", "1.22.333"), " ", join(",", map { sprintf "%03d", $_ } reverse 1 .. 5), " ", lc("ABC") x 3, "\n";
local $_ = "x" x 50_000;
my $length = 0;
$length += length while s/^(x{1,100})// && ($length += 1);
print "$length\n";
